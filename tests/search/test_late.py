from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.embeddings import Slices, plane_codes
from medret.search.matching import late_scores


def _sets(lengths: list[int], planes: int, seed: int, *, weighted: bool = False) -> Slices:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((sum(lengths), 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = rng.integers(0, planes, sum(lengths)).astype(np.int8) if planes else np.full(sum(lengths), -1, np.int8)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    return Slices(vectors, codes, starts=starts, weights=rng.random(sum(lengths)) if weighted else None)


def _parts(sets: Slices) -> list[Slices]:
    return [sets.of_volumes(np.arange(len(sets.firsts)) == number) for number in range(len(sets.firsts))]


def _one_way(one: Slices, other: Slices, *, same_plane: bool) -> float:
    """By the definition, slice by slice; NaN where nothing can be compared."""
    total, weight = 0.0, 0.0
    for number, (vector, plane) in enumerate(zip(one.vectors, one.planes, strict=True)):
        best = [
            float(vector @ against)
            for against, its in zip(other.vectors, other.planes, strict=True)
            if not same_plane or plane == its or -1 in (plane, its)
        ]
        if best:
            own = 1.0 if one.weights is None else float(one.weights[number])
            total, weight = total + own * max(best), weight + own
    return total / weight if weight else float("nan")


def _by_definition(queries: Slices, volumes: Slices, *, symmetric: bool, same_plane: bool) -> NDArray[np.float64]:
    scores = np.zeros((len(queries.firsts), len(volumes.firsts)))
    for (a, query), (b, volume) in itertools.product(enumerate(_parts(queries)), enumerate(_parts(volumes))):
        for planes in (same_plane, False):
            score = _one_way(query, volume, same_plane=planes)
            if symmetric:
                score = (score + _one_way(volume, query, same_plane=planes)) / 2
            scores[a, b] = score
            if not np.isnan(score):
                break
    return scores


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("same_plane", [False, True])
@pytest.mark.parametrize(("planes", "weighted"), [(3, False), (3, True), (1, False), (0, True)])
def test_scores_are_those_of_the_definition(symmetric: bool, same_plane: bool, planes: int, weighted: bool) -> None:
    queries = _sets([5, 1, 7, 2], planes, 1, weighted=weighted)
    volumes = _sets([1, 4, 9, 1, 6, 3], 3, 2)
    found = late_scores(queries, volumes, symmetric=symmetric, same_plane=same_plane)
    expected = _by_definition(queries, volumes, symmetric=symmetric, same_plane=same_plane)
    assert np.abs(found - expected).max() < 1e-12


def test_nothing_to_compare() -> None:
    empty = Slices(np.zeros((0, 16)), np.zeros(0, np.int8))
    assert late_scores(empty, _sets([2], 3, 0)).shape == (0, 1)
    assert late_scores(_sets([2], 3, 0), empty).shape == (1, 0)


def test_planes_by_name() -> None:
    assert plane_codes(["axial", "sagittal", None, "coronal"]).tolist() == [0, 2, -1, 1]
