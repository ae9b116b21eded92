from __future__ import annotations

import numpy as np
import pytest

from medret.embeddings import Slices, plane_codes
from medret.search.matching import PAIRS_MAX, match_of, match_slices, nearest_of_each

AXES = np.eye(4, dtype=np.float32)


def _slices(rows: list[int], planes: list[str | None] | None = None, first: int = 100) -> Slices:
    codes = plane_codes(planes or ["axial"] * len(rows))
    return Slices(AXES[rows], codes, np.arange(first, first + len(rows)))


def test_the_most_similar_pair_comes_first() -> None:
    match = match_slices(_slices([0, 1, 2]), _slices([3, 3, 1], first=7))
    assert match is not None
    best = match.pairs[0]
    assert (match.plane, best.query, best.hit, best.score) == ("axial", 101, 9, 1.0)
    assert sorted(pair.query or 0 for pair in match.pairs) == [100, 101, 102]


def test_slices_of_other_planes_are_not_compared() -> None:
    match = match_slices(_slices([0, 1], ["axial", "coronal"]), _slices([1, 1], ["axial", "coronal"], first=0))
    assert match is not None
    assert (match.plane, match.query, match.hit) == ("coronal", (101, 101), (1, 1))


def test_other_planes_are_compared_when_there_is_nothing_else() -> None:
    match = match_slices(_slices([0, 1]), _slices([2, 0], ["sagittal", "sagittal"], first=0))
    assert match is not None
    assert (match.plane, match.pairs[0].query, match.pairs[0].hit) == ("sagittal", 100, 1)


def test_equal_pairs_are_decided_by_the_middle_of_the_query() -> None:
    match = match_slices(_slices([0, 1, 2, 3, 0]), _slices([0, 1, 2, 3, 0]))
    assert match is not None
    assert match.pairs[0].query == match.pairs[0].hit == 102
    assert match.query == match.hit == (100, 104)


def test_a_volume_vector_has_no_query_range() -> None:
    match = match_slices(Slices(AXES[[2]], plane_codes([None])), _slices([0, 2, 1]))
    assert match is not None
    pair = {"plane": "axial", "query": None, "hit": 101, "score": 1.0}
    assert match.to_json() == {"query": None, "hit": [101, 101], "plane": "axial", "score": 1.0, "matches": [pair]}


def test_bare_slice_vectors_are_compared_with_every_plane() -> None:
    query = Slices(AXES[[1, 2]], plane_codes([None, None]), np.arange(2))
    match = match_slices(query, _slices([0, 0, 1, 2], ["axial", "axial", "coronal", "coronal"], first=5))
    assert match is not None
    assert (match.plane, match.query, match.hit) == ("coronal", (0, 1), (7, 8))
    assert match.score == pytest.approx(1.0)


def test_no_more_pairs_than_are_of_use() -> None:
    rows = [number % 4 for number in range(3 * PAIRS_MAX)]
    match = match_slices(_slices(rows), _slices([0, 1, 2, 3]))
    assert match is not None
    assert len(match.pairs) == PAIRS_MAX


def test_one_slice_and_one_slice() -> None:
    match = match_of(_slices([0, 1]), 1, _slices([1], first=7), 0, 1.0)
    assert (match.query, match.hit, len(match.pairs)) == ((101, 101), (7, 7), 1)


def test_nothing_to_compare() -> None:
    assert match_slices(_slices([0]), _slices([])) is None


def test_the_nearest_of_each_is_the_match_of_a_volume_vector() -> None:
    rng = np.random.default_rng(0)
    stored = [rng.standard_normal((count, 8)).astype(np.float16) for count in (1, 4, 2)]
    query = rng.standard_normal(8).astype(np.float32)
    found = nearest_of_each(query, [one.view(np.uint8) for one in stored])
    for vectors, (at, score) in zip(stored, found, strict=True):
        hit = Slices(vectors.astype(np.float32), plane_codes(["axial"] * len(vectors)), np.arange(len(vectors)))
        match = match_slices(Slices(query[None], plane_codes([None])), hit)
        assert match is not None
        assert match.hit == (at, at)
        assert score == pytest.approx(match.score, abs=1e-6)
    assert nearest_of_each(query, []) == []
