"""A stored volume, examined as far as every slice needs it: the image to show, its window, and where the body is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.recipe import SliceRecipe
from medret.volume.content import Content
from medret.volume.foreground import Box, foreground_box, threshold
from medret.volume.intensity import Window, check_percentiles, ct_window, extremes_window, percentile_window
from medret.volume.limits import Limits
from medret.volume.modality import Modality, modality_of
from medret.volume.open import open_volume
from medret.volume.orientation import Geometry, geometry_of
from medret.volume.sample import Sample, check_not_constant, check_not_mask, count_non_finite, take_sample
from medret.volume.stored import StoredVolume


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


@contextmanager
def within_memory() -> Iterator[None]:
    """Context that raises VolumeError `too_large` where memory does not suffice."""
    try:
        yield
    except MemoryError as error:
        raise VolumeError(QuarantineCode.TOO_LARGE, "there is too little memory for this volume") from error


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
