from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.search.localise import half_step, locate


def _walk(count: int, seed: int, pace: float = 0.35) -> NDArray[np.float64]:
    """Directions that change slowly, as anatomy does from slice to slice: neighbours are much alike."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.standard_normal((count, 48)) * pace, axis=0) + 3 * rng.standard_normal(48)
    unit: NDArray[np.float64] = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("seed", range(20))
def test_the_middle_third_is_found_from_sparse_slices(seed: int) -> None:
    body = _walk(120, seed)
    stored = np.arange(4, 120, 8)  # 15 slices, 8 apart
    own = np.arange(1, 40, 3)  # of voxels 40 .. 79
    noise = np.random.default_rng(seed).standard_normal((len(own), 48)) * 0.03
    cosines = ((body[40 + own] + noise) @ body[stored].T).astype(np.float32)
    found = locate(cosines, own, stored, (0, 39), 1.0)
    assert abs(found.range[0] - 40) <= 12
    assert abs(found.range[1] - 79) <= 12
    assert found.score > 0.8


def test_another_spacing() -> None:
    body = _walk(100, 1)
    cosines = (body[20:60:2] @ body.T).astype(np.float32)  # the query has every other slice, as its own 0 .. 19
    found = locate(cosines, np.arange(20), np.arange(100), (0, 19))
    assert abs(found.range[0] - 20) <= 2
    assert abs(found.range[1] - 59) <= 2


def test_a_range_reaches_beyond_the_slices_there_are() -> None:
    body = _walk(100, 2)
    stored = np.arange(5, 100, 10)
    chosen = stored[3:6]  # 35, 45, 55
    found = locate((body[chosen] @ body[stored].T).astype(np.float32), chosen, stored, (30, 61))
    assert found.range == pytest.approx((30, 61), abs=1)


def test_one_slice_stands_for_its_surroundings() -> None:
    stored = np.arange(5, 100, 10)
    cosines = np.where(stored == 45, 1.0, 0.2).astype(np.float32)[None]
    assert locate(cosines, np.array([7]), stored, (7, 7)).range == pytest.approx((40, 49), abs=1)
    assert locate(np.ones((1, 1), np.float32), np.array([7]), np.array([3]), (7, 7)).range == (3, 3)


def test_a_uniform_hit_is_matched_as_a_whole() -> None:
    found = locate(np.ones((5, 9), np.float32), np.arange(5), np.arange(9), (0, 4))
    assert found.range == (0, 8)


def test_the_line_is_as_long_as_the_query() -> None:
    flat = np.ones((11, 101), np.float32)
    found = locate(flat, np.arange(11), np.arange(101), (0, 10), 2.0)
    assert 20 / 1.7 <= found.range[1] - found.range[0] <= 20 * 1.7 + 3


def test_half_a_step() -> None:
    assert half_step(np.array([4, 12, 20, 29])) == 3.5
    assert half_step(np.array([4, 5, 6])) == 0
    assert half_step(np.array([4])) == 0
