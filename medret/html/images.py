"""The slices that a page shows: read from the archive, chosen, and encoded as PNG data URIs."""

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

from medret.errors import NotFoundError, UsageError, VolumeError
from medret.recipe import SliceRecipe
from medret.storage import in_words
from medret.volume import Content, SliceRef, read_volume

IMAGE_SIZE = 160  # px
READERS = 4  # volumes that are read at the same time, because archives may be far away

# Which slices of a plane are shown, as shares of their number: around the middle, where the organs are.
MIDDLE_OF_ONLY_PLANE = (0.3, 0.4, 0.5, 0.6, 0.7)
MIDDLE_OF_FIRST_PLANE, MIDDLE_OF_OTHER_PLANES = (0.35, 0.5, 0.65), (0.5,)

SliceKey = tuple[str, int]  # plane, slice index
Identity = tuple[str, str | None]  # volume_id and modality label, which decide how `read_volume` slices a volume


class NotShownError(Exception):
    """A volume is not shown; the message says why, for the reader of the page."""


@dataclass(frozen=True)
class Tile:
    """One slice as an image. source: a data URI. made_from: the slice's SOP instance UID, if it has one."""

    plane: str
    slice_index: int
    source: str
    made_from: str | None = None

    def __str__(self) -> str:
        return f"{self.plane} {self.slice_index}"


@dataclass(frozen=True)
class ImageRequest:
    """A volume to show. identity: None if it follows from the bytes. slices: shown besides the middle ones."""

    uri: str
    identity: Identity | None
    slices: frozenset[SliceKey] = frozenset()


@dataclass(frozen=True)
class VolumeImages:
    """The images of a volume. middle: ordered by plane and index. by_slice: these and the requested slices."""

    middle: tuple[Tile, ...]
    by_slice: Mapping[SliceKey, Tile]


def load_images(
    requests: Sequence[ImageRequest],
    recipe: SliceRecipe,
    *,
    fetch: Callable[[ImageRequest], Content],
    identify: Callable[[str, Content], Identity],
) -> dict[ImageRequest, VolumeImages | str]:
    """Read several volumes in parallel; the value is the reason as text where a volume cannot be shown.

    fetch: reads what a volume is made from, or raises `NotShownError`. identify: URI and content to identity, where a
    request has none.
    """

    def load(request: ImageRequest) -> VolumeImages | str:
        try:
            content = fetch(request)
            volume_id, modality = request.identity or identify(request.uri, content)
            volume = read_volume(content, volume_id, recipe, [IMAGE_SIZE], modality=modality)
        except NotShownError as error:
            return str(error)
        except (FileNotFoundError, NotFoundError):
            return "the file is no longer there"
        except VolumeError as error:
            return f"{error.code}: {error.reason}"
        except UsageError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # whatever a file system raises, the page is made without the image
            return f"cannot be read: {type(error).__name__}: {in_words(error)}"
        keys = [(ref.plane, ref.slice_index) for ref in volume.slices]
        middle = middle_slices(volume.slices)
        shown = {*middle, *(number for number, key in enumerate(keys) if key in request.slices)}
        tiles = {
            number: Tile(*keys[number], png_uri(volume.pixels[IMAGE_SIZE][number]), volume.slices[number].source)
            for number in shown
        }
        return VolumeImages(
            tuple(tiles[number] for number in middle), {keys[number]: tile for number, tile in tiles.items()}
        )

    distinct = list(dict.fromkeys(requests))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(distinct, pool.map(load, distinct), strict=True))


def middle_slices(slices: Sequence[SliceRef]) -> list[int]:
    """Choose slices around the middle: several of the first plane, one of each other plane, in that order.

    The choice is the same for every volume of an archive, so that the columns of a page can be compared.
    """
    by_plane: defaultdict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(slices)), key=lambda number: slices[number].slice_index):
        by_plane[slices[number].plane].append(number)
    chosen: list[int] = []
    for plane in dict.fromkeys(ref.plane for ref in slices):
        numbers = by_plane[plane]
        several = MIDDLE_OF_ONLY_PLANE if len(by_plane) == 1 else MIDDLE_OF_FIRST_PLANE
        shares = MIDDLE_OF_OTHER_PLANES if chosen else several
        chosen += dict.fromkeys(numbers[round(share * (len(numbers) - 1))] for share in shares)
    return chosen


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode a (size, size) grey image as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
