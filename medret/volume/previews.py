"""Pictures of slices for people: the previews of a volume, and any slice or a box of it in its own proportions."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.errors import UsageError
from medret.recipe import PLANES, SliceRecipe
from medret.volume.content import Content, Limits
from medret.volume.intensity import Window, to_grey
from medret.volume.read import ExaminedVolume, examine, within_memory
from medret.volume.sample import Box, whole
from medret.volume.slicing import AXIS, SliceRef, extract, fitted_size, in_plane_axes

MIDDLE_SLICES = 5  # per volume, on pages and as previews unless a run says otherwise
PREVIEWS_MAX = 50  # per volume
PREVIEW_SIZE = 160  # px per side, at most
# Five pictures of a volume, mean of 169 real ones: 12 kB and 0.8 ms as JPEG 60, 8 kB and 5.6 ms as WebP 60; of quality
# 80, 16 kB and 11 kB in the same times. To read these volumes takes 10 ms.
FORMAT, MEDIA_TYPE, QUALITY = "JPEG", "image/jpeg", 60
BYTES_MAX = 2 * PREVIEW_SIZE**2  # of one picture: twice its pixels

# How far apart the slices are, as a share of those of their plane: around the middle, where the organs are.
STEP_OF_ONLY_PLANE, STEP_OF_FIRST_PLANE = 0.1, 0.15

WHOLE, BODY = "none", "foreground"  # crops, as SliceRecipe.crop has them


@dataclass(frozen=True)
class Preview:
    """A small picture of one slice. slice_index: as in `SliceRef`. image: a grey JPEG, at most PREVIEW_SIZE px."""

    plane: str
    slice_index: int
    image: bytes


def middle_slices(slices: Sequence[SliceRef], count: int = MIDDLE_SLICES) -> list[int]:
    """Choose at most `count` slices around the middle: one of each plane but the first, and the others of the first.

    Three of the first plane at five, whether there are two planes or three. The choice is the same for every volume of
    an archive, so that the columns of a page can be compared.
    """
    by_plane: defaultdict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(slices)), key=lambda number: slices[number].slice_index):
        by_plane[slices[number].plane].append(number)
    chosen: list[int] = []
    for plane in list(dict.fromkeys(ref.plane for ref in slices))[:count]:
        numbers = by_plane[plane]
        if chosen:
            shares = _spread(1, 0)
        elif len(by_plane) == 1:
            shares = _spread(count, STEP_OF_ONLY_PLANE)
        else:
            shares = _spread(max(1, count - len(PLANES) + 1), STEP_OF_FIRST_PLANE)
        chosen += dict.fromkeys(numbers[round(share * (len(numbers) - 1))] for share in shares)
    return chosen


def _spread(count: int, step: float) -> list[float]:
    """Evenly spaced shares around the middle, 0 to 1 at most, in decimals that round as they are written."""
    step = min(step, 1 / max(1, count - 1))
    return [round(0.5 + step * (at - (count - 1) / 2), 10) for at in range(count)]


def make_previews(slices: Sequence[SliceRef], pixels: NDArray[np.uint8], count: int) -> list[Preview]:
    """Make the previews of a volume. pixels: (n, size, size), grey."""
    chosen = middle_slices(slices, count)
    return [Preview(slices[at].plane, slices[at].slice_index, _encoded(pixels[at])) for at in chosen]


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    if image.width > PREVIEW_SIZE:
        image = image.resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.HAMMING)
    buffer = io.BytesIO()
    image.save(buffer, FORMAT, quality=QUALITY, optimize=True)
    return buffer.getvalue()


def check_preview(preview: Preview) -> None:
    """Raise ValueError for a preview that `make_previews` does not make: a store may have been made by anyone."""
    name = f"the preview of slice {str(preview.plane)[:20]!r} {preview.slice_index}"
    if preview.plane not in PLANES or preview.slice_index < 0:
        raise ValueError(f"{name} is of no slice")
    if len(preview.image) > BYTES_MAX:
        raise ValueError(f"{name} has {len(preview.image)} bytes, expected at most {BYTES_MAX}")
    try:
        with Image.open(io.BytesIO(preview.image), formats=[FORMAT]) as image:
            if max(image.size) > PREVIEW_SIZE or image.mode != "L":
                raise ValueError(f"{image.width} x {image.height} px {image.mode}, expected grey, {PREVIEW_SIZE} px")
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a {FORMAT} that can be shown: {error}") from error


@dataclass(frozen=True)
class VolumeView:
    """A volume that is looked at slice by slice. Several threads may draw at the same time."""

    examined: ExaminedVolume

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sides in voxels, RAS+ order."""
        x, y, z = (self.examined.voxels.shape[axis] for axis in self.examined.geometry.axes)
        return x, y, z

    @property
    def size_bytes(self) -> int:
        """Memory that the decoded voxels take."""
        return self.examined.voxels.nbytes

    def box(self, crop: str) -> Box:
        """The part that a crop shows: `none` the whole field of view, `foreground` the body. Raises UsageError."""
        if crop not in (WHOLE, BODY):
            raise UsageError(f"crop is {crop!r}, expected {WHOLE} or {BODY}")
        return self.examined.body if crop == BODY else whole(self.shape)

    @within_memory()
    def draw(
        self, plane: str, slice_index: int, *, image_size: int, window: Window | None = None, crop: str = WHOLE
    ) -> NDArray[np.uint8]:
        """One slice as grey values (rows, columns), its longer side of `image_size` pixels, oriented as on the screen.

        slice_index: along the plane's axis, RAS+ order. window: None for the one that the recipe gives. With crop
        `none` the picture covers the slice exactly: column 0 is the edge at the patient's right (axial, coronal) or
        front (sagittal), row 0 that at the front (axial) or top. Raises UsageError if there is no such slice.
        """
        if plane not in AXIS:
            raise UsageError(f"plane is {plane!r}, expected one of {', '.join(AXIS)}")
        count = self.shape[AXIS[plane]]
        if not 0 <= slice_index < count:
            raise UsageError(f"there is no {plane} slice {slice_index}: the volume has {count}, from 0 to {count - 1}")
        seen, index = self.examined, np.array([slice_index], np.int64)
        (values,) = extract(seen.voxels, seen.geometry, self.box(crop), plane, index)
        grey = to_grey(values, seen.stored.scaling, window or seen.window, all_finite=not seen.non_finite)
        rows, columns = grey.shape
        across, down = (seen.geometry.spacing_mm[axis] for axis in in_plane_axes(plane))
        size = fitted_size(columns * across, rows * down, image_size)
        return np.asarray(Image.fromarray(np.ascontiguousarray(grey)).resize(size, Image.Resampling.BILINEAR))


@within_memory()
def view_volume(
    content: Content, recipe: SliceRecipe, *, modality: str | None = None, limits: Limits | None = None
) -> VolumeView:
    """Decode a volume to look at it; arguments and errors as for `read_volume`."""
    seen = examine(content, recipe, modality=modality, limits=limits or Limits())
    # What it was decoded from is let go: other time points, the instances of a series.
    voxels = seen.voxels.copy(order="K") if seen.stored.time_points > 1 else seen.voxels
    return VolumeView(replace(seen, voxels=voxels, stored=replace(seen.stored, voxels=lambda _: voxels)))
