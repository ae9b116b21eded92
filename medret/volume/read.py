"""Bytes to slices: all steps of medret.volume in one function, and what a volume is after reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.recipe import Images, SliceRecipe, stack_dtype, stack_shape
from medret.volume.content import Content, Limits
from medret.volume.drawing import Shown, draw_slices
from medret.volume.intensity import (
    Modality,
    Window,
    check_percentiles,
    ct_window,
    extremes_window,
    modality_of,
    percentile_window,
)
from medret.volume.open import open_volume
from medret.volume.orientation import AffineSource, Geometry, geometry_of
from medret.volume.sample import (
    Box,
    Sample,
    check_not_constant,
    check_not_mask,
    count_non_finite,
    foreground_box,
    take_sample,
    threshold,
    whole,
)
from medret.volume.slicing import (
    AXIS,
    Region,
    SliceRef,
    extract,
    in_plane_axes,
    parse_slice_plan,
    planes_of,
    slice_refs,
)
from medret.volume.stored import SeriesFacts, StoredVolume

_LIMITS = Limits()


@dataclass(frozen=True)
class VolumeFacts:
    """How a volume was stored and how it was read.

    format: "NIfTI-1", "NIfTI-2" or "DICOM".
    shape: as stored, without trailing ones; the fourth side is time.
    time_point: the one that was used, from 0: the first that contains an image.
    spacing_mm: along the RAS+ axes (x, y, z).
    orientation: the directions in which the stored axes point, such as "LPS".
    affine_source: "assumed" if the file has neither sform nor qform.
    affine_passed_over: why the preferred form was not used; None if it was.
    spacing_assumed: whether 1 mm was taken along an axis without a usable spacing.
    modality_source: where `modality` comes from: the label that was given, the DICOM tags, or the voxels.
    intensity: "hu:<preset>" or "percentile".
    intensity_range: real values shown as black and white.
    ct_without_hu: labelled CT, but the voxels are not Hounsfield units.
    non_finite_voxels: number of NaN or infinite voxels, shown black.
    trailing_bytes: bytes in the file after the last voxel.
    crop_box: ((x, y, z) first, (x, y, z) last) RAS+ voxel bounds, last exclusive.
    planes: the planes that were sliced.
    series: how a DICOM series was read; None for NIfTI.
    """

    format: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    orientation: str
    datatype: str
    affine_source: AffineSource
    affine_passed_over: str | None
    spacing_assumed: bool
    time_points: int
    time_point: int
    modality: str
    modality_source: Literal["label", "dicom", "guessed"]
    intensity: str
    intensity_range: tuple[float, float]
    ct_without_hu: bool
    non_finite_voxels: int
    trailing_bytes: int
    crop_box: tuple[tuple[int, int, int], tuple[int, int, int]]
    planes: tuple[str, ...]
    series: SeriesFacts | None

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class SlicedVolume:
    """A volume ready for the models.

    pixels: images -> one per slice, in order: (n, side, side) uint8 for the side of plain ones; for a drawing, (n,)
        and its medret.recipe.stack_shape and stack_dtype.
    labels: found in the volume's own tags, under medret's names (subject, modality, body_region, StudyDate, ...).
    """

    slices: tuple[SliceRef, ...]
    pixels: Mapping[Images, NDArray[Any]]
    facts: VolumeFacts
    labels: Mapping[str, str]


@contextmanager
def within_memory() -> Iterator[None]:
    """Context that raises VolumeError `too_large` where memory does not suffice."""
    try:
        yield
    except MemoryError as error:
        raise VolumeError(QuarantineCode.TOO_LARGE, "there is too little memory for this volume") from error


@within_memory()
def read_volume(
    content: Content,
    volume_id: str,
    recipe: SliceRecipe,
    images: Sequence[Images],
    *,
    modality: str | None = None,
    limits: Limits = _LIMITS,
    region: Region | None = None,
) -> SlicedVolume:
    """Slice one volume.

    content: the bytes of a .nii or .nii.gz object, of a zip or tar of a DICOM series, or the series' instances. Of a
        memory-mapped .nii file, only the pages of the sample and of the planned slices are read, unless its voxels are
        floating-point numbers: those are all checked.
    volume_id: part of the seed of `random:N`.
    images: sides in px of plain square images, and drawings; all are made from the same decoded slices.
    modality: the label, if there is one; else the DICOM tags and the voxels decide.
    region: the part to slice, instead of the whole body; UsageError if it lies outside the volume.

    For any bytes the outcome is a SlicedVolume or a VolumeError. An impossible recipe is a UsageError.
    """
    parse_slice_plan(recipe.slices)  # before anything is decoded
    sides_px = [stack_shape(each)[-1] for each in images]
    if min(sides_px, default=1) < 1:
        raise UsageError(f"image sides {sides_px} px are not all positive")
    examined = examine(content, recipe, modality=modality, limits=limits)
    stored, geometry, voxels = examined.stored, examined.geometry, examined.voxels
    time_point, non_finite, window = examined.time_point, examined.non_finite, examined.window
    shown_as, ras = examined.shown_as, geometry.to_ras(voxels)
    box = examined.body if recipe.crop == "foreground" else whole(ras.shape)
    if region is not None:
        box = region.within(box, geometry, ras.shape)

    planes = planes_of(ras.shape, recipe.planes)
    chosen = planned_slices(recipe, volume_id, box, ras.shape, geometry.spacing_mm)
    count = sum(map(len, chosen.values()))
    if count > limits.max_slices:
        raise VolumeError(
            QuarantineCode.TOO_LARGE,
            f"slice plan {recipe.slices} takes {count} slices of {' x '.join(map(str, ras.shape))} voxels, "
            f"the limit is {limits.max_slices}",
        )
    pixels = {each: np.zeros((count, *stack_shape(each)), stack_dtype(each)) for each in images}
    shown = Shown(stored.scaling, window, shown_as.is_hu, all_finite=not non_finite)
    slices: list[SliceRef] = []
    sources = stored.sources[time_point] if stored.sources else ()
    shows_something = not non_finite
    for plane, slice_indices in chosen.items():
        values = extract(voxels, geometry, box, plane, slice_indices)
        shows_something = shows_something or any(np.isfinite(each).any() for each in values)
        across, down = (geometry.spacing_mm[axis] for axis in in_plane_axes(plane))
        at = slice(len(slices), len(slices) + len(values))
        draw_slices(values, shown, plane, (across, down), {each: stack[at] for each, stack in pixels.items()})
        slices += slice_refs(geometry, ras.shape, plane, slice_indices, sources)
    if not shows_something:
        raise VolumeError(QuarantineCode.NON_FINITE, f"none of the {count} planned slices has a finite voxel")

    facts = VolumeFacts(
        format=stored.format,
        shape=stored.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=geometry.orientation,
        datatype=stored.dtype.name,
        affine_source=stored.placement.source,
        affine_passed_over=stored.placement.passed_over,
        spacing_assumed=stored.placement.spacing_assumed,
        time_points=stored.time_points,
        time_point=time_point,
        modality=shown_as.name,
        modality_source="dicom" if shown_as.source == "label" and not modality else shown_as.source,
        intensity=window.name,
        intensity_range=(window.low, window.high),
        ct_without_hu=shown_as.is_ct_without_hu,
        non_finite_voxels=non_finite,
        trailing_bytes=stored.trailing_bytes,
        crop_box=(box.first, box.last),
        planes=planes,
        series=stored.series,
    )
    return SlicedVolume(tuple(slices), pixels, facts, stored.labels)


def planned_slices(
    recipe: SliceRecipe, volume_id: str, box: Box, shape: tuple[int, ...], spacing_mm: Sequence[float]
) -> dict[str, NDArray[np.int64]]:
    """Plane -> the slices of a volume that a recipe takes: planned over a box, counted from the edge of the volume.

    shape, spacing_mm: along the RAS+ axes.
    """
    plan = parse_slice_plan(recipe.slices)
    chosen = {}
    for plane in planes_of(shape, recipe.planes):
        first, last = box.first[AXIS[plane]], box.last[AXIS[plane]]
        at_mm = np.arange(last - first) * spacing_mm[AXIS[plane]]
        chosen[str(plane)] = first + plan.indices(at_mm, f"{volume_id}\0{plane}", recipe.seed)
    return chosen


@dataclass(frozen=True)
class ExaminedVolume:
    """A volume whose slices can be drawn.

    time_point: the one that is used, from 0: the first that contains an image. voxels: its values as stored.
    non_finite: how many of them are NaN or infinite. window: real values shown as black and white. body: the box
    around the foreground, in RAS+ voxels.
    """

    stored: StoredVolume
    geometry: Geometry
    time_point: int
    voxels: NDArray[Any]
    non_finite: int
    shown_as: Modality
    window: Window
    body: Box


def examine(content: Content, recipe: SliceRecipe, *, modality: str | None, limits: Limits) -> ExaminedVolume:
    """Decode a volume and decide how it is shown; arguments and errors as for `read_volume`."""
    hu_window = ct_window(recipe.ct_window)
    check_percentiles(recipe.percentiles)
    stored = open_volume(content, limits)
    geometry = geometry_of(stored.placement, stored.shape)
    time_point, voxels, sample, non_finite = _first_image(stored, geometry, limits)
    if limits.refuse_masks:
        check_not_mask(voxels, sample)
    shown_as = modality_of(modality or stored.labels.get("modality"), sample.ordered)
    above = threshold(sample, is_hu=shown_as.is_hu)
    if shown_as.is_hu:
        window = hu_window
    else:
        window = percentile_window(sample, above, recipe.percentiles) or extremes_window(voxels, stored.scaling)
    body = foreground_box(sample, above, geometry.to_ras(voxels).shape)
    return ExaminedVolume(stored, geometry, time_point, voxels, non_finite, shown_as, window, body)


def _first_image(stored: StoredVolume, geometry: Geometry, limits: Limits) -> tuple[int, NDArray[Any], Sample, int]:
    """The first time point that is not empty: dynamic series begin before the tracer or contrast agent arrives.

    Also returns its voxels as stored, their sample, and the number of NaN or infinite voxels. If all time points are
    empty, raises the first one's error, NON_FINITE or CONSTANT.
    """
    refusal: VolumeError | None = None
    for time_point in range(stored.time_points):
        voxels = stored.voxels(time_point)
        try:
            non_finite = count_non_finite(voxels, limits)
            sample = take_sample(geometry.to_ras(voxels), stored.scaling)
            check_not_constant(voxels, sample)
        except VolumeError as error:
            refusal = refusal or error
            continue
        return time_point, voxels, sample, non_finite
    assert refusal is not None  # a series has a time point
    raise refusal
