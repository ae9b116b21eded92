"""Foreground boxes, planes, squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from medret.errors import UsageError
from medret.volume.content import Limits
from medret.volume.drawing import draw_squares
from medret.volume.header import parse_header
from medret.volume.sample import Box, Sample, foreground_box, take_sample, threshold, whole
from medret.volume.slicing import fitted_size, mask_region, planes_of


@pytest.fixture(scope="module")
def sampled(phantoms: Any) -> Any:
    header = parse_header(phantoms.nifti(np.zeros((9, 9, 9), np.int16), compress=False)[:544], Limits())

    def sample(values: NDArray[Any]) -> Sample:
        return take_sample(values, header.scaling)

    return sample


def box_of(sample: Sample, shape: tuple[int, ...], *, is_hu: bool = False) -> Box:
    return foreground_box(sample, threshold(sample, is_hu=is_hu), shape)


def block(shape: tuple[int, int, int], first: tuple[int, int, int], last: tuple[int, int, int]) -> NDArray[np.float64]:
    values = np.random.default_rng(0).normal(5, 2, shape)
    values[Box(first, last).slices] += 100
    return values


@given(st.integers(0, 2), st.integers(10, 60), st.integers(20, 60))
@settings(max_examples=40, deadline=None)
def test_the_box_holds_the_body_with_a_small_margin(sampled: Any, axis: int, start: int, length: int) -> None:
    shape, first, last = [150, 150, 150], [20, 20, 20], [130, 130, 130]
    first[axis], last[axis] = start, start + length
    values = block((150, 150, 150), (first[0], first[1], first[2]), (last[0], last[1], last[2]))
    sample = sampled(values)
    found = box_of(sample, tuple(shape))
    for a in range(3):
        assert found.first[a] <= first[a] <= found.first[a] + 4 * sample.steps[a]
        assert found.last[a] - 4 * sample.steps[a] <= last[a] <= found.last[a]


def test_single_bright_voxels_do_not_widen_the_box(sampled: Any) -> None:
    values = block((80, 80, 80), (30, 30, 30), (60, 60, 60))
    calm = box_of(sampled(values), values.shape)
    values[2, 2, 2] = values[77, 40, 3] = values[0, 79, 79] = 1e6
    values[10, 10:13, 70] = 500
    assert box_of(sampled(values), values.shape) == calm


def test_a_table_under_the_patient_is_left_out(sampled: Any) -> None:
    values = np.full((96, 96, 40), -1000.0)
    values[20:76, 40:90] = 40
    values[15:80, 6:8] = 300
    found = box_of(sampled(values), values.shape, is_hu=True)
    assert 30 <= found.first[1] <= 40
    assert found.last[1] >= 90


def test_two_legs_are_both_kept(sampled: Any) -> None:
    values = np.full((96, 60, 60), -1000.0)
    values[6:36, 15:45] = 40
    values[60:90, 15:45] = 40
    found = box_of(sampled(values), values.shape, is_hu=True)
    assert found.first[0] <= 6
    assert found.last[0] >= 90


def test_without_a_body_the_whole_field_of_view_is_kept(sampled: Any) -> None:
    noise = np.random.default_rng(3).normal(0, 1, (40, 40, 40))
    assert box_of(sampled(noise), noise.shape) == whole(noise.shape)
    air = np.full((40, 40, 40), -1000.0)
    assert box_of(sampled(air), air.shape, is_hu=True) == whole(air.shape)
    speck = np.zeros((40, 40, 40))
    speck[20, 20, 20] = 1
    assert box_of(sampled(speck), speck.shape) == whole(speck.shape)


def test_nan_is_background(sampled: Any) -> None:
    values = block((60, 60, 60), (20, 20, 20), (50, 50, 50))
    calm = box_of(sampled(values), values.shape)
    values[:6, :, :] = np.nan
    values[:, :6, :] = np.inf
    assert box_of(sampled(values), values.shape) == calm


def test_tumours_do_not_make_background_of_the_body(sampled: Any) -> None:
    values = np.random.default_rng(0).uniform(0, 0.02, (60, 60, 60))
    values[15:45, 10:50, 5:55] += 0.5
    values[25:35, 25:35, 25:40] = 20
    found = box_of(sampled(values), values.shape)
    assert all(first <= edge for first, edge in zip(found.first, (15, 10, 5), strict=True))


@pytest.mark.parametrize(
    ("shape", "wanted", "found"),
    [
        ((40, 40, 20), ("axial", "sagittal"), ("axial", "sagittal")),
        ((40, 40, 1), ("axial", "coronal"), ("axial",)),
        ((40, 40, 1), ("coronal",), ("axial",)),
        ((1, 40, 40), ("axial",), ("sagittal",)),
        ((40, 1, 40), ("axial", "sagittal"), ("coronal",)),
    ],
)
def test_a_single_slice_is_seen_in_its_own_plane(
    shape: tuple[int, ...], wanted: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert planes_of(shape, wanted) == found


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.integers(1, 500))
def test_the_longer_side_fits(width_mm: float, height_mm: float, side: int) -> None:
    width, height = fitted_size(width_mm, height_mm, side)
    assert max(width, height) == side
    assert min(width, height) >= 1
    assert abs(width * height_mm - height * width_mm) <= max(width_mm, height_mm) or min(width, height) == 1


def square(image: NDArray[np.uint8], spacing: tuple[float, float], side: int) -> NDArray[np.uint8]:
    onto: NDArray[np.uint8] = np.zeros((1, side, side), np.uint8)
    draw_squares([image], spacing, onto)
    return onto.reshape(side, side)


def test_physical_aspect_is_kept_and_the_rest_is_black() -> None:
    image = np.full((20, 40), 200, np.uint8)
    found = square(image, (1.0, 1.0), 64)  # twice as wide as high
    assert np.all(found[16:48] == 200)
    assert not found[:16].any()
    assert not found[48:].any()
    assert np.all(square(image, (1.0, 2.0), 64) == 200)  # rows twice as far apart: a square
    tall = square(image, (1.0, 4.0), 64)
    assert np.all(tall[:, 16:48] == 200)
    assert not tall[:, :16].any()


@pytest.mark.parametrize("side", [1, 7, 224])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (500, 3), (33, 47)])
def test_any_shape_fits_any_side(shape: tuple[int, int], side: int) -> None:
    assert square(np.full(shape, 9, np.uint8), (0.3, 5.0), side).max() == 9


def test_shrinking_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    small = square(stripes, (1.0, 1.0), 64)
    assert np.abs(small[:, 4:-4].astype(int) - 128).max() < 12


@pytest.mark.parametrize("count", range(1, 10))
def test_images_drawn_together_are_as_drawn_alone(count: int) -> None:
    images = list(np.random.default_rng(count).integers(0, 256, (count, 40, 30), np.uint8).transpose(0, 2, 1)[:, ::-1])
    onto: NDArray[np.uint8] = np.zeros((count, 64, 64), np.uint8)
    draw_squares(images, (1.0, 1.2), onto)
    for image, found in zip(images, onto, strict=True):
        alone = Image.fromarray(np.ascontiguousarray(image)).resize((64, 58), Image.Resampling.BILINEAR)
        assert np.array_equal(found[3:61], np.asarray(alone))
        assert not found[:3].any()
        assert not found[61:].any()


def test_the_box_around_a_mask_is_the_same_however_its_values_are_stored(phantoms: Any, mr: NDArray[np.uint16]) -> None:
    marked = np.zeros(mr.shape, np.int16)
    marked[3:8, 10:12, 4:7] = 2
    volume = phantoms.nifti(mr)
    for slope, inter in ((1.0, 0.0), (2.0, 0.0), (1.0, -100.0), (0.25, 0.1), (-0.5, 30.0)):
        stored = np.round((marked - inter) / slope).astype(np.int16)
        region = mask_region(phantoms.nifti(stored, slope=slope, inter=inter), volume)
        assert region.bounds == ((3, 7), (10, 11), (4, 6)), (slope, inter)
    with pytest.raises(UsageError, match="query cannot be used: not_nifti"):
        mask_region(phantoms.nifti(marked), b"no volume" * 50)
