"""Filtered search against brute force over the kept rows: 12,000 synthetic vectors in clusters, some of them equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from medret.index import Distinct, ExactIndex, IndexSettings, Searchable
from medret.index.approximate import first_equal
from medret.index.exact import build_exact
from medret.index.hnsw import HnswIndex, build_hnsw
from medret.index.lsh import LshIndex, build_lsh
from medret.index.settings import FP16, RABITQ

ROWS, DIM, K = 12_000, 64, 10
SETTINGS = IndexSettings(hnsw_m=16, hnsw_ef_construction=80)
EF_SEARCH = {FP16: 64, RABITQ: 100}  # codes of 64 dimensions are coarse
SELECTIVITIES = (0.5, 0.05, 0.01, 0.001)


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float16]:
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((40, DIM)) + rng.standard_normal(DIM)
    raw = centres[rng.integers(40, size=ROWS)] + 0.6 * rng.standard_normal((ROWS, DIM))
    raw[rng.integers(ROWS, size=1500)] = raw[7]  # empty slices are all alike
    raw[rng.integers(ROWS, size=1500)] = raw[rng.integers(ROWS, size=1500)]
    unit: NDArray[np.float16] = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
    return unit


@pytest.fixture(scope="module")
def indices(vectors: NDArray[np.float16]) -> dict[str, Searchable]:
    exact = ExactIndex(build_exact(vectors))
    first = first_equal(vectors)
    distinct, chosen = Distinct(first), vectors[np.unique(first)]
    return {
        "exact": exact,
        **{
            codes: HnswIndex(build_hnsw(chosen, replace(SETTINGS, hnsw_codes=codes)), exact, distinct, ef_search)
            for codes, ef_search in EF_SEARCH.items()
        },
        "lsh": LshIndex(build_lsh(chosen, SETTINGS), exact, distinct, SETTINGS.lsh_candidates),
    }


@pytest.fixture(scope="module")
def queries(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    rng = np.random.default_rng(6)
    raw = vectors[rng.integers(ROWS, size=40)] + 0.04 * rng.standard_normal((40, DIM))
    raw[0] = vectors[7]
    unit: NDArray[np.float32] = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _kept(share: float, how: str, vectors: NDArray[np.float16]) -> NDArray[np.bool_]:
    """At random, or one half of space first: what is kept is then not where most queries are."""
    count = round(share * ROWS)
    order = np.random.default_rng(8).permutation(ROWS)
    if how == "one side":
        order = np.argsort(vectors[:, 0].astype(np.float64), kind="stable")
    mask = np.zeros(ROWS, np.bool_)
    mask[order[:count]] = True
    return mask


def _truth(queries: NDArray[np.float32], vectors: NDArray[np.float16], kept: NDArray[np.bool_]) -> Any:
    rows = np.flatnonzero(kept)
    scores = (queries.astype(np.float64) @ vectors[rows].astype(np.float64).T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(rows, scores.shape), -scores), axis=1)[:, :K]
    return np.take_along_axis(scores, order, axis=1), rows[order]


@pytest.mark.parametrize("how", ["at random", "one side"])
@pytest.mark.parametrize("share", SELECTIVITIES)
def test_filters_are_right_at_every_selectivity(
    indices: dict[str, Searchable],
    vectors: NDArray[np.float16],
    queries: NDArray[np.float32],
    share: float,
    how: str,
) -> None:
    kept = _kept(share, how, vectors)
    excluded = np.flatnonzero(~kept)
    scores, rows = _truth(queries, vectors, kept)
    found = {kind: index.search(queries, K, excluded) for kind, index in indices.items()}
    assert np.abs(found["exact"].scores - scores).max() < 1e-6
    untied = scores > scores[:, -1:]  # at the cut any of the equal vectors may be meant
    assert (found["exact"].rows == rows)[untied].all()
    assert kept[found["exact"].rows].all()
    for kind in (*EF_SEARCH, "lsh"):
        assert kept[found[kind].rows].all()
        # by score: of equal vectors any may be meant
        reached = (found[kind].scores >= scores[:, -1:] - 1e-6).mean()
        assert reached >= 0.98, (kind, share, how)


def test_the_index_is_walked_where_it_is_faster_and_the_rows_scanned_where_they_are_few(
    indices: dict[str, Searchable], queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    scan = ExactIndex.search

    def counted(self: ExactIndex, some: NDArray[np.float32], *rest: Any) -> Any:
        asked.append(len(some))
        return scan(self, some, *rest)

    monkeypatch.setattr(ExactIndex, "search", counted)
    excluded = np.arange(0, ROWS, 2)
    for kind in (*EF_SEARCH, "lsh"):
        indices[kind].search(queries, K, excluded)
        assert sum(asked) < len(queries) / 2, kind
        asked.clear()
        indices[kind].search(queries, K, np.arange(200, ROWS))
        assert asked == [len(queries)]
        asked.clear()


def test_nothing_kept(indices: dict[str, Searchable], queries: NDArray[np.float32]) -> None:
    for index in indices.values():
        found = index.search(queries, K, np.arange(ROWS))
        assert (found.rows == -1).all()
        assert np.isneginf(found.scores).all()


def test_fewer_kept_than_asked_for(indices: dict[str, Searchable], queries: NDArray[np.float32]) -> None:
    kept = np.array([3, 77, 1500])
    for index in indices.values():
        found = index.search(queries, K, np.setdiff1d(np.arange(ROWS), kept))
        assert (np.sort(found.rows, axis=1)[:, -3:] == kept).all()
        assert (found.rows[:, 3:] == -1).all()


def test_faiss_still_counts_bits_from_the_lowest() -> None:
    """The selector is a bitmap: row i is bit i % 8 of byte i // 8."""
    index = faiss.IndexFlatIP(2)
    index.add(np.ones((20, 2), np.float32))
    library: Any = faiss  # its type stubs lack these arguments
    selector = library.IDSelectorBitmap(np.packbits(np.arange(20) == 11, bitorder="little"))
    _, rows = index.search(np.ones((1, 2), np.float32), 3, params=library.SearchParameters(sel=selector))
    assert rows.tolist() == [[11, -1, -1]]
