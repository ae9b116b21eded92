"""Which slices of a volume to use, and extracting them as square images, oriented as a radiologist expects them.

plane     slices along   rows, from the top        columns, from the left
axial     z, superior    anterior to posterior     patient's right to left
coronal   y, anterior    superior to inferior      patient's right to left
sagittal  x, right       superior to inferior      anterior to posterior

A slice plan says which slices along an axis:

    all         every slice
    every:N     every N-th slice, centred
    every:Nmm   the slices nearest to points N mm apart, centred; every slice where slices lie further apart
    uniform:N   the middles of N equal parts
    random:N    N distinct slices, drawn at random from a seed, the volume's id and the plane

`every` and `uniform` are symmetric: a volume stored in reverse gives the same slices.

A region is a part of a volume to slice instead of the whole: a range of slices, a box, or the box around a mask.
Windows and percentiles still come from the whole volume, so a part looks the same as in the whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError, VolumeError
from medret.recipe import middles
from medret.volume.content import Content, Limits
from medret.volume.open import open_volume
from medret.volume.orientation import Geometry, geometry_of, slice_centres_mm
from medret.volume.sample import Box
from medret.volume.stored import StoredVolume

AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}  # plane -> the RAS+ axis along which its slices are counted
_PLANE_OF_AXIS = {axis: plane for plane, axis in AXIS.items()}

Bounds = tuple[float, float] | None
_SAME_MM = 1e-2  # tolerated difference between the affines of a mask and its volume
_NEAR = 1e-6  # of a voxel: rounding of coordinates


@dataclass(frozen=True)
class SliceRef:
    """One slice of a volume (the columns of schemas.SLICE_COLUMNS).

    plane: axial, coronal or sagittal.
    slice_index: voxel index along the plane's axis, in RAS+ order of the uncropped volume (0 is the most inferior,
        posterior or left slice). On disk: the column `position`.
    relative_position: 0 for the first slice of the uncropped volume, 1 for the last, 0.5 for a single one. On disk:
        `relative`.
    position_mm: scanner coordinate of the slice's centre along that axis, in mm.
    source: the SOPInstanceUID of the DICOM instance that the slice is, `UID#7` for its frame 7 (counted from 1); None
        for a slice across instances, and for NIfTI.
    """

    plane: str
    slice_index: int
    relative_position: float
    position_mm: float
    source: str | None = None


def in_plane_axes(plane: str) -> tuple[int, int]:
    """The RAS+ axes along (columns, rows) of a slice image."""
    across, down = (axis for axis in range(3) if axis != AXIS[plane])
    return across, down


def planes_of(shape: tuple[int, ...], requested: Sequence[str]) -> tuple[str, ...]:
    """The requested planes in which a volume of this RAS+ shape has images.

    A volume of one slice is an image in its own plane and only lines in the others. If no requested plane has images,
    it is sliced in its own plane.
    """
    visible = tuple(plane for plane in requested if min(shape[axis] for axis in in_plane_axes(plane)) > 1)
    return visible or (_PLANE_OF_AXIS[shape.index(1)],)


def slice_refs(
    geometry: Geometry, shape: tuple[int, ...], plane: str, slice_indices: NDArray[np.int64], sources: Sequence[str]
) -> list[SliceRef]:
    """One reference per slice.

    shape: of the uncropped volume, in RAS+ order. slice_indices: along the plane's axis. sources: of the stored slices.
    """
    axis, last = AXIS[plane], shape[AXIS[plane]] - 1
    positions_mm = slice_centres_mm(geometry, shape, axis, slice_indices).tolist()
    found = _sources(sources, geometry, axis, shape[axis], slice_indices)
    return [
        SliceRef(plane, index, index / last if last else 0.5, position_mm, source)
        for index, position_mm, source in zip(slice_indices.tolist(), positions_mm, found, strict=True)
    ]


def _sources(
    sources: Sequence[str], geometry: Geometry, axis: int, side: int, slice_indices: NDArray[np.int64]
) -> Sequence[str | None]:
    """The source of each slice along a RAS+ axis. A slice across stored slices has one if they all come from one."""
    if sources and geometry.axes[axis] == 2:
        return [sources[index] for index in geometry.stored_indices(axis, side, slice_indices)]
    instances = {source.partition("#")[0] for source in sources}
    return [instances.pop() if len(instances) == 1 else None] * len(slice_indices)


def extract(
    voxels: NDArray[Any], geometry: Geometry, box: Box, plane: str, slice_indices: NDArray[np.int64]
) -> list[NDArray[Any]]:
    """Crop slices: (rows, columns) views of stored values in screen order.

    voxels: as stored, first axis fastest in memory. slice_indices: ascending RAS+ indices along the plane's axis.
    On the screen both axes run from high to low: right before left, anterior before posterior, superior before
    inferior.
    """
    axis = AXIS[plane]
    bounds = list(box.slices)
    if geometry.axes[axis] == 0 and len(slice_indices) > 1:
        # Neighbours in memory belong to different slices: gather all slices in one pass through memory.
        stored = np.sort(geometry.stored_indices(axis, voxels.shape[0], slice_indices))
        voxels = np.take(voxels.T, stored, axis=2).T
        slice_indices = np.arange(len(slice_indices))
    bounds[axis] = slice(None)
    stack = np.moveaxis(geometry.to_ras(voxels)[tuple(bounds)], axis, 0)
    return [stack[index].T[::-1, ::-1] for index in slice_indices]


def fitted_size(width_mm: float, height_mm: float, image_size: int) -> tuple[int, int]:
    """(width, height) in px of a rectangle scaled so that its longer side is `image_size`; each at least 1."""
    longest = max(width_mm, height_mm)
    return max(1, round(width_mm / longest * image_size)), max(1, round(height_mm / longest * image_size))


Kind = Literal["all", "every", "uniform", "random"]

_FORM = re.compile(r"(every|uniform|random):([1-9][0-9]{0,5})")
_GAP = re.compile(r"every:((?:0|[1-9][0-9]{0,3})(?:\.[0-9]{0,2}[1-9])?)mm")  # one way to write each: recipes name it
_LEAST_GAP_MM = 0.1


@dataclass(frozen=True)
class SlicePlan:
    """A parsed slice plan. count: N. gap_mm: that of `every:Nmm`. Both are None for `all`."""

    kind: Kind
    count: int | None = None
    gap_mm: float | None = None

    def indices(self, at_mm: NDArray[Any], key: str = "", seed: int = 0) -> NDArray[np.int64]:
        """Ascending slice indices from `range(len(at_mm))`; all of them if the plan asks for more.

        at_mm: where each slice lies along its axis, ascending. key: the volume's id and the plane, on which `random`
        depends besides the seed.
        """
        n_slices = len(at_mm)
        everything = np.arange(n_slices, dtype=np.int64)
        if self.gap_mm is not None and n_slices:
            return _spaced(np.asarray(at_mm, np.float64), self.gap_mm)
        if self.count is None:
            return everything
        if self.kind == "every":
            first = ((n_slices - 1) % self.count) // 2 if n_slices else 0
            return everything[first :: self.count]
        if self.count >= n_slices:
            return everything
        if self.kind == "uniform":
            return middles(n_slices, self.count)
        return _draw(n_slices, self.count, key, seed)


def parse_slice_plan(text: str) -> SlicePlan:
    """Read `all`, `every:N`, `uniform:N` or `random:N` (N from 1 to 999999), or `every:Nmm` (N from 0.1 to 9999).

    Raises UsageError for anything else.
    """
    if text == "all":
        return SlicePlan("all")
    if match := _FORM.fullmatch(text):
        return SlicePlan(cast("Kind", match[1]), int(match[2]))
    if (match := _GAP.fullmatch(text)) and float(match[1]) >= _LEAST_GAP_MM:
        return SlicePlan("every", gap_mm=float(match[1]))
    raise UsageError(
        f"slice plan {text!r} is not one of all, every:N, uniform:N, random:N with N from 1 to 999999, or every:Nmm "
        "with N from 0.1 to 9999 without needless zeros, such as every:5mm"
    )


def _spaced(at_mm: NDArray[np.float64], gap_mm: float) -> NDArray[np.int64]:
    """The slices nearest to points so far apart, as many as fit between the first and the last, centred.

    A point between two slices takes the inner one, so that the choice is its own mirror image.
    """
    if len(at_mm) > 1 and gap_mm <= np.diff(at_mm).min():
        return np.arange(len(at_mm), dtype=np.int64)
    middle, near = (at_mm[0] + at_mm[-1]) / 2, _NEAR * gap_mm
    count = int((at_mm[-1] - at_mm[0]) / gap_mm + _NEAR) + 1
    points = middle + (np.arange(count) - (count - 1) / 2) * gap_mm
    above = np.clip(np.searchsorted(at_mm, points - near), 0, len(at_mm) - 1)
    below = np.maximum(above - 1, 0)
    nearer = (points - at_mm[below]) - (at_mm[above] - points)  # > 0: the upper slice is nearer
    upper = (nearer > near) | ((abs(nearer) <= near) & (points < middle))
    chosen: NDArray[np.int64] = np.unique(np.where(upper, above, below)).astype(np.int64)
    return chosen


def _draw(n_slices: int, count: int, key: str, seed: int) -> NDArray[np.int64]:
    """The `count` slices with the smallest hashes: equal on every machine and with every version of numpy."""
    stem = f"{seed}\0{key}\0".encode()
    ranks = [hashlib.sha256(stem + str(number).encode()).digest() for number in range(n_slices)]
    chosen = sorted(range(n_slices), key=ranks.__getitem__)[:count]
    return np.array(sorted(chosen), dtype=np.int64)


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
                    f"{bounds[0]:g}:{bounds[1]:g}{unit} holds no slice: the volume's {_PLANE_OF_AXIS[axis]} slices lie "
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
        imaged = open_volume(volume, limits)
    except VolumeError as error:
        raise UsageError(f"query cannot be used: {error.code}: {error.reason}") from error
    try:
        marks = open_volume(mask, limits)
        voxels = marks.voxels(0)
    except VolumeError as error:
        named = VolumeError(error.code, f"mask: {error.reason}")
        raise UsageError(f"mask cannot be used: {error.code}: {error.reason}") from named
    voxels = geometry_of(marks.placement, marks.shape).to_ras(voxels)
    if problem := grids_differ(marks, imaged):
        raise UsageError(f"mask has {problem} (the query's, RAS+ order): a mask must be drawn on the query's own grid")
    if marks.scaling.inter == 0:
        marked = (voxels != 0) & (voxels == voxels)  # not NaN
    else:  # of an image that was saved with an offset, 0 is no stored value: the nearest one stands for it
        marked = np.abs(marks.scaling.real(voxels)) > abs(marks.scaling.slope) / 2
    bounds = []
    for axis in range(3):
        indices = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(indices):
            raise UsageError("mask is empty: none of its voxels differs from 0")
        bounds.append((float(indices[0]), float(indices[-1])))
    return Region((bounds[0], bounds[1], bounds[2]))
