"""A part of a volume to slice instead of the whole: a range of slices, a box, or the box around a mask.

Windows and percentiles still come from the whole volume, so a part looks the same as in the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medret.errors import UsageError, VolumeError
from medret.volume.content import Content
from medret.volume.foreground import Box
from medret.volume.limits import Limits
from medret.volume.open import open_volume
from medret.volume.orientation import Geometry, geometry_of, slice_centres_mm
from medret.volume.slicing import PLANE_OF_AXIS
from medret.volume.stored import StoredVolume

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
            places, near = np.arange(shape[axis], dtype=np.float64), _NEAR
            if self.mm:
                places = slice_centres_mm(geometry, shape, axis, np.arange(shape[axis]))
                near *= float(abs(geometry.affine_ras[axis, axis]))
            inside = np.flatnonzero((places >= bounds[0] - near) & (places <= bounds[1] + near))
            if not len(inside):
                unit = " mm" if self.mm else ""
                raise UsageError(
                    f"{bounds[0]:g}:{bounds[1]:g}{unit} holds no slice: the volume's {PLANE_OF_AXIS[axis]} slices lie "
                    f"at {places[0]:g} to {places[-1]:g}{unit}"
                )
            first[axis], last[axis] = int(inside[0]), int(inside[-1]) + 1
        return Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))


def grids_differ(one: StoredVolume, other: StoredVolume) -> str | None:
    """How the grid of a volume differs from that of another, in words: what one has, not what the other has.

    None if they are the same, up to 0.01 mm.
    """
    geometry, other_geometry = (geometry_of(each.placement, each.shape) for each in (one, other))
    sides = [one.shape[axis] for axis in geometry.axes]
    other_sides = [other.shape[axis] for axis in other_geometry.axes]
    if sides != other_sides:
        return f"{' x '.join(map(str, sides))} voxels, not {' x '.join(map(str, other_sides))}"
    if np.allclose(geometry.affine_ras, other_geometry.affine_ras, rtol=0, atol=_SAME_MM):
        return None
    here, there = _place(geometry), _place(other_geometry)
    return f"voxels {here}, not {'in other directions' if here == there else there}"


def _place(geometry: Geometry) -> str:
    spacing = " x ".join(f"{mm:.4g}" for mm in geometry.spacing_mm)
    first = ", ".join(f"{mm:.2f}" for mm in geometry.affine_ras[:3, 3])
    return f"of {spacing} mm, the first at ({first})"


def mask_region(mask: Content, volume: Content, limits: Limits | None = None) -> Region:
    """The box around a mask's non-zero voxels; raises UsageError if it is empty or not on the volume's grid."""
    limits = limits or Limits()
    try:
        marks, imaged = open_volume(mask, limits), open_volume(volume, limits)
        voxels = marks.voxels(0)
    except VolumeError as error:
        named = VolumeError(error.code, f"mask: {error.reason}")
        raise UsageError(f"mask cannot be used: {error.code}: {error.reason}") from named
    voxels = geometry_of(marks.placement, marks.shape).to_ras(voxels)
    if problem := grids_differ(marks, imaged):
        raise UsageError(f"mask has {problem} (the query's, RAS+ order): a mask must be drawn on the query's own grid")
    marked = (voxels != 0) & (voxels == voxels)  # not NaN
    bounds = []
    for axis in range(3):
        indices = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(indices):
            raise UsageError("mask is empty: none of its voxels differs from 0")
        bounds.append((float(indices[0]), float(indices[-1])))
    return Region((bounds[0], bounds[1], bounds[2]))
