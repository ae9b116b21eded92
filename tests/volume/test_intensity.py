"""Statistics, modality, windows."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.volume.content import Limits
from medret.volume.header import parse_header
from medret.volume.intensity import CT_WINDOWS, Window, ct_window, extremes_window, percentile_window, to_grey
from medret.volume.sample import (
    MOST_ORDERED,
    MOST_PER_AXIS,
    Sample,
    check_not_constant,
    count_non_finite,
    quantile,
    take_sample,
)
from medret.volume.stored import Scaling

SHAPE = (12, 14, 10)


def scaling_of(phantoms: Any, dtype: str = "i2", slope: float = 1, inter: float = 0) -> Scaling:
    data = phantoms.nifti(np.zeros(SHAPE, dtype), slope=slope, inter=inter, compress=False)
    return parse_header(data[:544], Limits()).scaling


def sample_of(phantoms: Any, values: NDArray[Any], slope: float = 1, inter: float = 0) -> Sample:
    return take_sample(values, scaling_of(phantoms, "i2", slope, inter))


# --- sample ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "i8", "f4", ">f8"])
@pytest.mark.parametrize(("slope", "inter"), [(1, 0), (2, -5), (-0.5, 3)])
def test_small_volumes_are_sampled_whole(phantoms: Any, dtype: str, slope: float, inter: float) -> None:
    values = np.random.default_rng(1).integers(0, 100, SHAPE).astype(dtype)
    sample = sample_of(phantoms, values, slope, inter)
    real = values.astype(float) * slope + inter
    assert np.array_equal(sample.values, real)
    assert sample.ordered.tolist() == sorted(real.ravel().tolist())
    assert sample.steps == (1, 1, 1)


def test_large_volumes_are_sampled_on_a_centred_grid(phantoms: Any) -> None:
    values = np.random.default_rng(1).normal(size=(200, 90, 30))
    sample = sample_of(phantoms, values)
    assert max(sample.values.shape) <= MOST_PER_AXIS
    assert sample.ordered.size <= MOST_ORDERED
    for side, start, step, count in zip(values.shape, sample.starts, sample.steps, sample.values.shape, strict=True):
        assert abs((side - 1 - (start + (count - 1) * step)) - start) <= 1
    assert abs(quantile(sample.ordered, 0.5)) < 0.05


def test_what_is_not_finite_is_left_out(phantoms: Any) -> None:
    values = np.arange(float(np.prod(SHAPE))).reshape(SHAPE)
    values[0], values[1, 0], values[1, 1] = np.nan, np.inf, -np.inf
    sample = sample_of(phantoms, values)
    assert sample.ordered.size == np.isfinite(values).sum()
    assert np.all(np.diff(sample.ordered) > 0)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_is_numpys(values: list[float], share: float) -> None:
    ordered = np.sort(np.array(values))
    with np.errstate(over="ignore"):
        expected = float(np.quantile(ordered.astype(np.longdouble), share))
    assert quantile(ordered, share) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_non_finite_voxels_are_counted_and_refused_when_hardly_any_other_is_left() -> None:
    """C9."""
    voxels = np.ones((10, 10, 10), np.float32, order="F")
    assert count_non_finite(voxels, Limits()) == 0
    voxels.reshape(-1, order="F")[50:] = [np.nan, np.inf] * 475
    assert count_non_finite(voxels, Limits()) == 950
    voxels[0, 0, 0] = -np.inf
    with pytest.raises(VolumeError, match="951 of 1000") as caught:
        count_non_finite(voxels, Limits())
    assert caught.value.code == QuarantineCode.NON_FINITE


def test_huge_values_are_not_taken_for_infinite_ones() -> None:
    assert count_non_finite(np.full((8, 8, 8), 3e38, np.float32, order="F"), Limits()) == 0
    assert count_non_finite(np.full((8, 8, 8), -1.7e308, order="F"), Limits()) == 0


def test_constant_volumes_and_one_different_voxel(phantoms: Any) -> None:
    voxels = np.full((100, 100, 9), 7, np.int16)
    with pytest.raises(VolumeError) as caught:
        check_not_constant(voxels, sample_of(phantoms, voxels))
    assert caught.value.code == QuarantineCode.CONSTANT
    voxels[1, 1, 1] = 8
    sample = sample_of(phantoms, voxels)
    assert sample.ordered[0] == sample.ordered[-1]  # the sample does not see it
    check_not_constant(voxels, sample)


def test_constant_but_for_nan_is_constant(phantoms: Any) -> None:
    voxels = np.full(SHAPE, 3.5)
    voxels[0, :5] = np.nan
    with pytest.raises(VolumeError, match=r"3\.5") as caught:
        check_not_constant(voxels, sample_of(phantoms, voxels))
    assert caught.value.code == QuarantineCode.CONSTANT


# --- windows ---------------------------------------------------------------------------------------------------


def test_presets_are_level_and_width() -> None:
    assert ct_window("soft_tissue") == Window("hu:soft_tissue", -160, 240)
    assert ct_window("lung") == Window("hu:lung", -1350, 150)
    assert all(width > 0 for _, width in CT_WINDOWS.values())
    with pytest.raises(UsageError, match="soft_tissue"):
        ct_window("liver spleen")


def test_percentiles_are_of_the_foreground(phantoms: Any) -> None:
    values = np.zeros((10, 10, 10))
    values[:, :, 5:] = np.linspace(100, 200, 500).reshape(10, 10, 5)
    window = percentile_window(sample_of(phantoms, values), 50.0, (10, 90))
    assert window is not None
    assert [window.low, window.high] == pytest.approx([110, 190])


def test_without_two_values_in_the_sample_the_extremes_serve(phantoms: Any) -> None:
    values = np.zeros(SHAPE, np.int16)
    assert percentile_window(sample_of(phantoms, values), -1.0, (0.5, 99.5)) is None
    assert percentile_window(sample_of(phantoms, values), 1.0, (0.5, 99.5)) is None
    values[1, 1, 1] = 9
    assert extremes_window(values, scaling_of(phantoms, slope=-2, inter=1)) == Window("percentile", -17, 1)


def test_scaling_beyond_the_range_of_numbers_is_refused(phantoms: Any) -> None:
    data = phantoms.nifti(np.zeros(SHAPE), version=2, slope=1e308, compress=False)
    with pytest.raises(VolumeError) as caught:
        extremes_window(np.array([1.0, 1e10]), parse_header(data[:544], Limits()).scaling)
    assert caught.value.code == QuarantineCode.HEADER_INVALID


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", ">i2", "i4", "u4", "i8", "u8", "f4", ">f4", "f8"])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.25, -3.0), (-2.0, 50.0)])
def test_grey_is_the_window_whatever_the_storage(phantoms: Any, dtype: str, slope: float, inter: float) -> None:
    stored = np.arange(0, 120, dtype=dtype).reshape(10, 12)
    window = Window("percentile", -10.0, 60.0)
    grey = to_grey(stored, scaling_of(phantoms, slope=slope, inter=inter), window, all_finite=True)
    real = stored.astype(float) * slope + inter
    exact = np.clip((real + 10) / 70, 0, 1) * 255
    assert grey.dtype == np.uint8
    assert np.abs(grey - exact).max() <= 0.5001


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_grey_keeps_the_order_and_reaches_both_ends(
    phantoms: Any, low: float, width: float, values: list[float]
) -> None:
    stored = np.sort(np.array([*values, low - width, low + 3 * width]))
    grey = to_grey(stored, scaling_of(phantoms), Window("percentile", low, low + width), all_finite=True)
    assert np.all(np.diff(grey.astype(int)) >= 0)
    assert (grey[0], grey[-1]) == (0, 255)


def test_what_is_not_finite_is_black(phantoms: Any) -> None:
    stored = np.array([[np.nan, np.inf, -np.inf, 5.0, 10.0]], np.float32)
    grey = to_grey(stored, scaling_of(phantoms), Window("percentile", 0, 10), all_finite=False)
    assert grey.tolist() == [[0, 0, 0, 128, 255]]


def test_extreme_numbers_do_not_break_the_window(phantoms: Any) -> None:
    stored = np.array([-3e38, 0, 3e38], np.float32)
    grey = to_grey(stored, scaling_of(phantoms), Window("percentile", -3e38, 3e38), all_finite=True)
    assert grey.tolist() in ([0, 127, 255], [0, 128, 255])
    tiny = to_grey(np.array([0.0, 5e-320]), scaling_of(phantoms), Window("percentile", 0, 5e-320), all_finite=True)
    assert tiny[0] == 0


def test_slope_of_the_header_is_read_as_float32(phantoms: Any) -> None:
    data = phantoms.nifti(np.zeros(SHAPE, "i2"), compress=False, patch={112: struct.pack("<2f", 0.1, 1)})
    assert parse_header(data[:544], Limits()).scaling.slope == pytest.approx(0.1)
