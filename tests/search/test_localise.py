from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.search.matching import STRETCH, half_step, lengths_allowed, lines, locate


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


def test_whatever_the_spans_starts_and_paces_the_line_lies_in_the_hit() -> None:
    """C0: a query longer than the hit left no line whose length fits, when the bounds were rounded apart."""
    rng = np.random.default_rng(5)
    for span in [*range(1, 150)] * 4:
        query = np.sort(rng.choice(300, rng.integers(2, 6), replace=False))
        hit = rng.integers(0, 90) + np.linspace(0, span, min(span + 1, 9)).round().astype(np.int64)
        cosines = rng.uniform(0, 1, (len(query), len(hit))).astype(np.float32)
        exact = span * STRETCH / (query[-1] - query[0])  # the pace at which the query just fills the hit
        for pace in (exact, exact * 3, float(np.exp(rng.uniform(-12, 12)))):
            low, high = locate(cosines, query, hit, (int(query[0]), int(query[-1])), pace).range
            margin = half_step(hit)
            assert hit[0] - margin <= low <= high <= hit[-1] + margin


def test_some_length_is_always_allowed() -> None:
    for most in (1, 7, 96):
        for wanted in [*np.geomspace(1e-12, 1e12, 500).tolist(), most * STRETCH, most / STRETCH]:
            shortest, longest = lengths_allowed(wanted, most)
            assert 0 <= shortest <= longest <= most
        assert lengths_allowed(most * STRETCH, most) == (most, most)
        assert lengths_allowed(1e12, most) == (most, most)
        assert lengths_allowed(1e-12, most) == (0, 0)


def test_a_longer_query_takes_the_whole_hit() -> None:
    rng = np.random.default_rng(0)
    found = locate(rng.uniform(0, 1, (40, 22)).astype(np.float32), np.arange(40), np.arange(22), (0, 39), 3.0)
    assert found.range == (0, 21)


def test_lines_are_all_those_of_a_length() -> None:
    for places, shortest, longest in ((1, 0, 0), (2, 0, 1), (7, 2, 4), (7, 6, 6), (97, 0, 96)):
        every = {(a, b) for a in range(places) for b in range(a, places) if shortest <= b - a <= longest}
        found = list(zip(*(side.tolist() for side in lines(places, shortest, longest)), strict=True))
        assert len(found) == len(every)
        assert set(found) == every
