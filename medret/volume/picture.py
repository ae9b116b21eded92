"""Pictures of single slices for people: a whole slice or a box of it, in its own proportions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.errors import UsageError
from medret.recipe import SliceRecipe
from medret.volume.content import Content
from medret.volume.examine import ExaminedVolume, examine, within_memory
from medret.volume.foreground import Box, whole
from medret.volume.intensity import Window, to_grey
from medret.volume.limits import Limits
from medret.volume.slicing import AXIS, extract, fitted_size, in_plane_axes

WHOLE, BODY = "none", "foreground"  # crops, as SliceRecipe.crop has them


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
    return VolumeView(examine(content, recipe, modality=modality, limits=limits or Limits()))
