"""The slices that a page shows: read from the archive, chosen, and encoded as PNG data URIs; or else previews."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.errors import MedretError, NotFoundError, UsageError, VolumeError
from medret.recipe import SliceRecipe
from medret.storage import in_words
from medret.volume import Content, read_volume
from medret.volume.previews import MEDIA_TYPE, PREVIEW_SIZE, Preview, middle_slices

IMAGE_SIZE = PREVIEW_SIZE  # px
READERS = 4  # volumes that are read at the same time, because archives may be far away

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
    """The images of a volume.

    middle: ordered by plane and index. by_slice: these and the requested slices. instead: why these are previews, which
    the store holds, and not slices that were read from the archive.
    """

    middle: tuple[Tile, ...]
    by_slice: Mapping[SliceKey, Tile]
    instead: str = ""


def load_images(
    requests: Sequence[ImageRequest],
    recipe: SliceRecipe,
    *,
    fetch: Callable[[ImageRequest], Content],
    identify: Callable[[str, Content], Identity],
    previews: Callable[[ImageRequest], Sequence[Preview]] = lambda _: (),
) -> dict[ImageRequest, VolumeImages | str]:
    """Read several volumes in parallel; the value is the reason as text where a volume cannot be shown.

    fetch: reads what a volume is made from, or raises `NotShownError`. identify: URI and content to identity, where a
    request has none. previews: what is shown of a volume that cannot be read.
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

    def load_or_preview(request: ImageRequest) -> VolumeImages | str:
        images = load(request)
        if not isinstance(images, str):
            return images
        try:
            return preview_images(previews(request), images) or images
        except MedretError as error:
            return f"{images}; and its previews cannot be shown: {error}"

    distinct = list(dict.fromkeys(requests))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(distinct, pool.map(load_or_preview, distinct), strict=True))


def preview_images(previews: Sequence[Preview], instead: str) -> VolumeImages | None:
    """The previews of a volume as its images; None if it has none. instead: why they are shown."""
    tiles = tuple(Tile(each.plane, each.slice_index, _data_uri(each.image, MEDIA_TYPE)) for each in previews)
    return VolumeImages(tiles, {(tile.plane, tile.slice_index): tile for tile in tiles}, instead) if tiles else None


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode a (size, size) grey image as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _data_uri(buffer.getvalue(), "image/png")


def _data_uri(image: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"
