"""Bytes to slices: all steps of medret.volume in one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.recipe import SliceRecipe
from medret.volume.facts import SlicedVolume, SliceRef, VolumeFacts
from medret.volume.foreground import Box, foreground_box, threshold, whole
from medret.volume.inflate import Content
from medret.volume.intensity import (
    Window,
    check_percentiles,
    ct_window,
    extremes_window,
    percentile_window,
    to_grey,
)
from medret.volume.limits import Limits
from medret.volume.masks import check_not_mask
from medret.volume.modality import modality_of
from medret.volume.nifti import NiftiFile, open_nifti
from medret.volume.orientation import Geometry, geometry_of
from medret.volume.region import Region
from medret.volume.sample import Sample, check_not_constant, count_non_finite, take_sample
from medret.volume.slice_plan import SlicePlan, parse_slice_plan
from medret.volume.slicing import AXIS, draw_squares, extract, in_plane_axes, planes_of, slice_refs

_LIMITS = Limits()


def read_volume(
    data: Content,
    volume_id: str,
    recipe: SliceRecipe,
    sides_px: Sequence[int],
    *,
    modality: str | None = None,
    limits: Limits = _LIMITS,
    region: Region | None = None,
) -> SlicedVolume:
    """Slice one NIfTI volume.

    data: the .nii or .nii.gz object. Of a memory-mapped .nii file, only the pages of the sample and of the planned
        slices are read, unless its voxels are floating-point numbers: those are all checked.
    volume_id: part of the seed of `random:N`.
    sides_px: sizes of the square images; all are made from the same decoded slices.
    modality: the label, if there is one.
    region: the part to slice, instead of the whole body; UsageError if it lies outside the volume.

    For any bytes the outcome is a SlicedVolume or a VolumeError. An impossible recipe is a UsageError.
    """
    request = _Request(
        volume_id, recipe, parse_slice_plan(recipe.slices), ct_window(recipe.ct_window), modality, limits, region
    )
    check_percentiles(recipe.percentiles)
    if any(side < 1 for side in sides_px):
        raise UsageError(f"image sides {list(sides_px)} px are not all positive")
    try:
        return _read(data, request, sides_px)
    except MemoryError as error:
        raise VolumeError(QuarantineCode.TOO_LARGE, "there is too little memory for this volume") from error


@dataclass(frozen=True)
class _Request:
    """The checked arguments of `read_volume`."""

    volume_id: str
    recipe: SliceRecipe
    plan: SlicePlan
    hu_window: Window
    label: str | None
    limits: Limits
    region: Region | None


def _read(data: Content, request: _Request, sides_px: Sequence[int]) -> SlicedVolume:
    recipe, limits = request.recipe, request.limits
    nifti = open_nifti(data, limits)
    header = nifti.header
    geometry = geometry_of(header)
    frame = _first_image(nifti, geometry, limits)
    voxels, sample, non_finite = frame.voxels, frame.sample, frame.non_finite
    ras = geometry.to_ras(voxels)
    if limits.refuse_masks:
        check_not_mask(voxels, sample)

    modality = modality_of(request.label, sample.ordered)
    above = threshold(sample, is_hu=modality.is_hu)
    if modality.is_hu:
        window = request.hu_window
    else:
        window = percentile_window(sample, above, recipe.percentiles) or extremes_window(voxels, header)
    box = foreground_box(sample, above, ras.shape) if recipe.crop == "foreground" else whole(ras.shape)
    if request.region is not None:
        box = request.region.within(box, geometry, ras.shape)

    planes = planes_of(ras.shape, recipe.planes)
    chosen = {plane: _slice_indices(request, plane, box) for plane in planes}
    count = sum(map(len, chosen.values()))
    if count > limits.max_slices:
        raise VolumeError(
            QuarantineCode.TOO_LARGE,
            f"slice plan {recipe.slices} takes {count} slices of {' x '.join(map(str, ras.shape))} voxels, "
            f"the limit is {limits.max_slices}",
        )
    pixels = {side: np.zeros((count, side, side), dtype=np.uint8) for side in sides_px}
    slices: list[SliceRef] = []
    shows_something = not non_finite
    for plane, slice_indices in chosen.items():
        images = extract(voxels, geometry, box, plane, slice_indices)
        shows_something = shows_something or any(np.isfinite(image).any() for image in images)
        grey = [to_grey(image, header, window, all_finite=not non_finite) for image in images]
        across, down = in_plane_axes(plane)
        for squares in pixels.values():
            onto = squares[len(slices) : len(slices) + len(grey)]
            draw_squares(grey, (geometry.spacing_mm[across], geometry.spacing_mm[down]), onto)
        slices += slice_refs(geometry, ras.shape, plane, slice_indices)
    if not shows_something:
        raise VolumeError(QuarantineCode.NON_FINITE, f"none of the {count} planned slices has a finite voxel")

    facts = VolumeFacts(
        shape=header.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=geometry.orientation,
        datatype=header.dtype.name,
        nifti_version=header.version,
        affine_source=geometry.source,
        affine_passed_over=geometry.passed_over,
        spacing_assumed=geometry.spacing_assumed,
        time_points=header.time_points,
        time_point=frame.time_point,
        modality=modality.name,
        modality_source=modality.source,
        intensity=window.name,
        intensity_range=(window.low, window.high),
        ct_without_hu=modality.is_ct_without_hu,
        non_finite_voxels=non_finite,
        trailing_bytes=nifti.trailing_bytes,
        crop_box=(box.first, box.last),
        planes=planes,
    )
    return SlicedVolume(tuple(slices), pixels, facts)


@dataclass(frozen=True)
class _Frame:
    """A time point that contains an image. voxels: as stored. non_finite: number of NaN or infinite voxels."""

    time_point: int
    voxels: NDArray[Any]
    sample: Sample
    non_finite: int


def _first_image(nifti: NiftiFile, geometry: Geometry, limits: Limits) -> _Frame:
    """The first time point that is not empty: dynamic series begin before the tracer or contrast agent arrives.

    If all are empty, raises the first one's error, NON_FINITE or CONSTANT.
    """
    refusal: VolumeError | None = None
    for time_point in range(nifti.header.time_points):
        voxels = nifti.voxels(time_point)
        try:
            non_finite = count_non_finite(voxels, limits)
            sample = take_sample(geometry.to_ras(voxels), nifti.header)
            check_not_constant(voxels, sample)
        except VolumeError as error:
            refusal = refusal or error
            continue
        return _Frame(time_point, voxels, sample, non_finite)
    assert refusal is not None  # a series has a time point
    raise refusal


def _slice_indices(request: _Request, plane: str, box: Box) -> NDArray[np.int64]:
    """The slices to take along a plane's axis: planned over the body, counted from the edge of the volume."""
    first, last = box.first[AXIS[plane]], box.last[AXIS[plane]]
    return first + request.plan.indices(last - first, f"{request.volume_id}\0{plane}", request.recipe.seed)
