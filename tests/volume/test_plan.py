"""Slice plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medret.errors import UsageError
from medret.volume import parse_slice_plan

COUNTS = st.integers(1, 200)
LENGTHS = st.integers(0, 400)


def test_all_takes_every_slice() -> None:
    assert parse_slice_plan("all").indices(np.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_every_takes_each_nth_slice() -> None:
    assert parse_slice_plan("every:3").indices(np.arange(10)).tolist() == [0, 3, 6, 9]
    assert parse_slice_plan("every:4").indices(np.arange(11)).tolist() == [1, 5, 9]


def test_uniform_takes_the_middles_of_equal_parts() -> None:
    assert parse_slice_plan("uniform:4").indices(np.arange(16)).tolist() == [2, 6, 9, 13]
    assert parse_slice_plan("uniform:1").indices(np.arange(9)).tolist() == [4]
    assert parse_slice_plan("uniform:3").indices(np.arange(9)).tolist() == [1, 4, 7]


@given(st.sampled_from(["every", "uniform", "random"]), COUNTS, LENGTHS, st.text(max_size=5), st.integers(0, 99))
def test_indices_are_ascending_distinct_and_inside(kind: str, count: int, length: int, key: str, seed: int) -> None:
    chosen = parse_slice_plan(f"{kind}:{count}").indices(np.arange(length), key, seed)
    assert chosen.dtype == np.int64
    assert np.all(np.diff(chosen) > 0)
    assert not chosen.size or (chosen[0] >= 0 and chosen[-1] < length)
    if kind != "every":
        assert len(chosen) == min(count, length)
    elif length:
        assert abs(len(chosen) - length / count) < 1


@given(COUNTS, LENGTHS)
def test_uniform_is_its_own_mirror_image(count: int, length: int) -> None:
    chosen = parse_slice_plan(f"uniform:{count}").indices(np.arange(length))
    mirrored = length - 1 - chosen[::-1]
    if count % 2 == 1 and length % 2 == 0 and count < length:  # an even number of slices has no middle one
        middle = count // 2
        chosen, mirrored = np.delete(chosen, middle), np.delete(mirrored, middle)
    assert chosen.tolist() == mirrored.tolist()


@given(COUNTS, st.integers(1, 400))
def test_every_leaves_equal_margins(count: int, length: int) -> None:
    chosen = parse_slice_plan(f"every:{count}").indices(np.arange(length))
    assert 0 <= (length - 1 - chosen[-1]) - chosen[0] <= 1


@given(
    st.integers(1, 300),
    st.floats(0.2, 12),
    st.sampled_from(["0.5", "1", "2.5", "5", "7.25", "40"]),
    st.floats(-500, 500),
)
def test_every_mm_takes_the_slices_nearest_to_a_centred_comb(n: int, spacing: float, gap: str, start: float) -> None:
    """By definition: every point of the comb has a slice within half a spacing, and every slice taken has a point."""
    at_mm = start + spacing * np.arange(n)
    chosen = parse_slice_plan(f"every:{gap}mm").indices(at_mm)
    middle, points = at_mm.mean(), [0.0]
    fits = int((at_mm[-1] - at_mm[0]) / float(gap) + 1e-6)
    points = [middle + (number - fits / 2) * float(gap) for number in range(fits + 1)]
    assert all(min(abs(at_mm[chosen] - point)) <= min(abs(at_mm - point)) + 1e-4 for point in points)
    assert all(min(abs(at - point) for point in points) <= spacing / 2 + 1e-4 for at in at_mm[chosen])
    assert len(chosen) <= len(points)
    assert len(set(chosen.tolist())) == len(chosen)
    if len(points) % 2 == 0 or n % 2:  # an even number of slices has no middle one
        assert chosen.tolist() == (n - 1 - chosen[::-1]).tolist()


def test_every_mm_in_numbers() -> None:
    assert parse_slice_plan("every:5mm").indices(np.arange(11) * 2.5).tolist() == [0, 2, 4, 6, 8, 10]
    assert parse_slice_plan("every:5mm").indices(np.arange(6) * 5.0).tolist() == [0, 1, 2, 3, 4, 5]
    assert parse_slice_plan("every:5mm").indices(np.arange(4) * 9.0).tolist() == [0, 1, 2, 3]
    assert parse_slice_plan("every:10mm").indices(np.arange(8) * 3.0).tolist() == [0, 3, 7]
    assert parse_slice_plan("every:100mm").indices(np.arange(9) * 3.0).tolist() == [4]
    assert parse_slice_plan("every:5mm").indices(np.zeros(0)).tolist() == []


def test_random_depends_on_key_and_seed_alone() -> None:
    plan = parse_slice_plan("random:5")
    first = plan.indices(np.arange(60), "a", 0).tolist()
    assert first == plan.indices(np.arange(60), "a", 0).tolist()
    others = [plan.indices(np.arange(60), "b", 0).tolist(), plan.indices(np.arange(60), "a", 1).tolist()]
    assert first not in others
    assert set(first) <= set(parse_slice_plan("random:9").indices(np.arange(60), "a", 0).tolist())


def test_random_is_the_same_on_every_machine() -> None:
    assert parse_slice_plan("random:4").indices(np.arange(100), "case\0axial", 7).tolist() == [19, 26, 72, 79]


def test_random_reaches_every_slice_about_equally() -> None:
    plan = parse_slice_plan("random:5")
    hits = np.bincount(np.concatenate([plan.indices(np.arange(20), str(key)) for key in range(800)]), minlength=20)
    assert hits.min() > 140
    assert hits.max() < 260


@pytest.mark.parametrize(
    "text",
    [
        "",
        "every",
        "every:0",
        "every:-1",
        "uniform:1.5",
        "random:x",
        "some:3",
        "all:1",
        "uniform:16 ",
        "every:0mm",
        "every:0.05mm",
        "every:5.0mm",
        "every:05mm",
        "every:5cm",
        "uniform:5mm",
        "every:mm",
        "every:10000mm",
    ],
)
def test_anything_else_is_refused_with_the_allowed_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"all, every:N, uniform:N, random:N"):
        parse_slice_plan(text)


def test_a_gap_smaller_than_any_takes_all_at_once() -> None:
    at_mm = np.array([0.0, 1.0, 1e7])  # a comb over it would have 10^8 points
    assert parse_slice_plan("every:0.1mm").indices(at_mm).tolist() == [0, 1, 2]
