"""A part of a volume to slice instead of the whole: a range of slices, a box, or the box around a mask.

Windows and percentiles still come from the whole volume, so a part looks the same as in the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from medret.errors import UsageError, VolumeError
from medret.volume.foreground import Box
from medret.volume.header import Limits
from medret.volume.nifti import open_nifti
from medret.volume.orientation import Geometry, geometry_of
from medret.volume.slicing import PLANE_OF_AXIS

Bounds = tuple[float, float] | None
_SAME_MM = 1e-2  # tolerated difference between the affines of a mask and its volume
_NEAR = 1e-6  # of a voxel: rounding of coordinates


@dataclass(frozen=True)
class Region:
    """Bounds along the RAS+ axes x, y, z, both ends inclusive; None for an axis without bounds.

    In voxels of the RAS+ order or, with `mm`, in scanner coordinates of slice centres (SliceRef.position_mm).
    """

    bounds: tuple[Bounds, Bounds, Bounds]
    mm: bool = False

    def within(self, box: Box, geometry: Geometry, shape: tuple[int, ...]) -> Box:
        """The box with these bounds, and with those of `box` (the body) on the other axes. Raises UsageError."""
        first, last = list(box.first), list(box.last)
        for axis, bounds in enumerate(self.bounds):
            if bounds is None:
                continue
            start, step = _line(axis, geometry, shape) if self.mm else (0.0, 1.0)
            low, high = ((bound - start) / step for bound in (bounds if step > 0 else reversed(bounds)))
            first[axis] = max(0, ceil(max(low, -1.0) - _NEAR))
            last[axis] = min(shape[axis], floor(min(high, float(shape[axis])) + _NEAR) + 1)
            if first[axis] >= last[axis]:
                unit, end = " mm" if self.mm else "", start + step * (shape[axis] - 1)
                raise UsageError(
                    f"{bounds[0]:g}:{bounds[1]:g}{unit} holds no slice: the volume's {PLANE_OF_AXIS[axis]} slices lie "
                    f"at {start:g} to {end:g}{unit}"
                )
        return Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))


def _line(axis: int, geometry: Geometry, shape: tuple[int, ...]) -> tuple[float, float]:
    """Scanner coordinate of the first slice's centre along the axis, and mm per slice; as slicing.slice_refs."""
    centre = np.array([(side - 1) / 2 for side in shape] + [1.0])
    centre[axis] = 0
    return float(geometry.affine_ras[axis] @ centre), float(geometry.affine_ras[axis, axis])


def mask_region(mask: bytes, volume: bytes) -> Region:
    """The box around a mask's non-zero voxels; raises UsageError if it is empty or not on the volume's grid."""
    try:
        mask_file = open_nifti(mask, Limits())
        mask_geometry = geometry_of(mask_file.header)
        volume_header = open_nifti(volume, Limits()).header
    except VolumeError as error:
        raise UsageError(f"mask cannot be used: {error.code}: {error.reason}") from error
    voxels = mask_geometry.to_ras(mask_file.voxels())
    geometry = geometry_of(volume_header)
    shape = tuple(volume_header.shape[axis] for axis in geometry.axes)
    if voxels.shape != shape or not np.allclose(mask_geometry.affine_ras, geometry.affine_ras, atol=_SAME_MM):
        raise UsageError(
            f"mask has {' x '.join(map(str, voxels.shape))} voxels, the query {' x '.join(map(str, shape))} (RAS+ "
            "order), or lies elsewhere in the scanner: a mask must be drawn on the query's own grid"
        )
    marked = (voxels != 0) & (voxels == voxels)  # not NaN
    bounds = []
    for axis in range(3):
        indices = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(indices):
            raise UsageError("mask is empty: none of its voxels differs from 0")
        bounds.append((float(indices[0]), float(indices[-1])))
    return Region((bounds[0], bounds[1], bounds[2]))
