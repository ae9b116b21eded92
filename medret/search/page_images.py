"""The slices that a page of search results shows: read from the archive, chosen, encoded as PNG data URIs."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.errors import VolumeError
from medret.recipe import SliceRecipe
from medret.search.places import Refused
from medret.storage import in_words
from medret.volume import Limits, SliceRef, fetch_volume, read_volume

SIDE_PX = 160
READERS = 4

# Where in the row of a plane's slices, 0 to 1, a slice is shown: around the middle, where the organs are.
AROUND_MIDDLE_ALONE = (0.3, 0.4, 0.5, 0.6, 0.7)
AROUND_MIDDLE, MIDDLE = (0.35, 0.5, 0.65), (0.5,)

Place = tuple[str, int]  # plane, position
Identify = Callable[[str, bytes], tuple[str, str | None]]  # URI and bytes to what `read_volume` slices it as


@dataclass(frozen=True)
class Tile:
    """One slice as an image. source: a data URI."""

    plane: str
    position: int
    source: str


@dataclass(frozen=True)
class ImageRequest:
    """A volume to show. identity: volume_id and modality; None: found from its bytes. places: further slices."""

    uri: str
    identity: tuple[str, str | None] | None
    places: frozenset[Place]


@dataclass(frozen=True)
class Shown:
    """What is shown of a volume. middle: ordered by plane and position. by_place: these and the slices asked for."""

    middle: tuple[Tile, ...]
    by_place: Mapping[Place, Tile]


def read_tiles(
    wanted: Sequence[ImageRequest], recipe: SliceRecipe, identify: Identify, place: Callable[[str, str], str]
) -> dict[ImageRequest, Shown | str]:
    """The tiles of each volume, or why there are none. Volumes are read side by side, for stores far away.

    place: volume_id and URI to where it is read, or `Refused`.
    """

    def load(one: ImageRequest) -> Shown | str:
        uri = one.uri if one.identity is None else place(one.identity[0], one.uri)
        if isinstance(uri, Refused):
            return uri.reason
        try:
            data = fetch_volume(uri, Limits())
            volume_id, modality = one.identity or identify(one.uri, data)
            volume = read_volume(data, volume_id, recipe, [SIDE_PX], modality=modality)
        except FileNotFoundError:
            return "the file is no longer there"
        except VolumeError as error:
            return f"{error.code}: {error.reason}"
        except Exception as error:  # noqa: BLE001  # whatever a file system raises, the page is made without the image
            return f"cannot be read: {type(error).__name__}: {in_words(error)}"
        places = [(ref.plane, ref.slice_index) for ref in volume.slices]
        pixels = volume.pixels[SIDE_PX]
        tiles = {
            number: Tile(*places[number], png(pixels[number]))
            for number in {
                *middle_slices(volume.slices),
                *(at for at, place in enumerate(places) if place in one.places),
            }
        }
        middle = tuple(tiles[number] for number in middle_slices(volume.slices))
        return Shown(middle, {places[number]: tile for number, tile in tiles.items()})

    distinct = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(distinct, pool.map(load, distinct), strict=True))


def middle_slices(slices: Sequence[SliceRef]) -> list[int]:
    """Numbers of some slices around the middle: several of the first plane, one of each other, in that order.

    The same choice for every volume of an archive, so that columns of a page can be compared.
    """
    by_plane: defaultdict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(slices)), key=lambda number: slices[number].slice_index):
        by_plane[slices[number].plane].append(number)
    chosen: list[int] = []
    for plane in dict.fromkeys(ref.plane for ref in slices):
        numbers = by_plane[plane]
        shares = AROUND_MIDDLE_ALONE if len(by_plane) == 1 else MIDDLE if chosen else AROUND_MIDDLE
        chosen += dict.fromkeys(numbers[round(share * (len(numbers) - 1))] for share in shares)
    return chosen


def png(pixels: NDArray[np.uint8]) -> str:
    """A (side, side) grey image as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
