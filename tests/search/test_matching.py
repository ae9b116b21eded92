from __future__ import annotations

import numpy as np
import pytest

from medret.search.matching import SliceVectors, best_pair

AXES = np.eye(4, dtype=np.float32)


def _slices(rows: list[int], planes: list[str | None] | None = None, first: int = 100) -> SliceVectors:
    planes = planes or ["axial"] * len(rows)
    return SliceVectors(AXES[rows], planes, np.arange(first, first + len(rows)))


def test_the_most_similar_pair_is_found() -> None:
    match = best_pair(_slices([0, 1, 2]), _slices([3, 3, 1], first=7))
    assert match is not None
    assert (match.plane, match.query, match.hit, match.score) == ("axial", (101, 101), (9, 9), 1.0)


def test_slices_of_other_planes_are_not_compared() -> None:
    match = best_pair(_slices([0, 1], ["axial", "coronal"]), _slices([1, 1], ["axial", "coronal"], first=0))
    assert match is not None
    assert (match.plane, match.query, match.hit) == ("coronal", (101, 101), (1, 1))


def test_other_planes_are_compared_when_there_is_nothing_else() -> None:
    match = best_pair(_slices([0, 1]), _slices([2, 0], ["sagittal", "sagittal"], first=0))
    assert match is not None
    assert (match.plane, match.query, match.hit) == ("sagittal", (100, 100), (1, 1))


def test_equal_pairs_are_decided_by_the_middle_of_the_query() -> None:
    match = best_pair(_slices([0, 1, 2, 3, 0]), _slices([0, 1, 2, 3, 0]))
    assert match is not None
    assert match.query == match.hit == (102, 102)


def test_a_volume_vector_has_no_query_range() -> None:
    match = best_pair(SliceVectors(AXES[[2]], [None], None), _slices([0, 2, 1]))
    assert match is not None
    assert match.to_json() == {"query": None, "hit": [101, 101], "plane": "axial", "score": pytest.approx(1.0)}


def test_nothing_to_compare() -> None:
    assert best_pair(_slices([0]), _slices([])) is None
