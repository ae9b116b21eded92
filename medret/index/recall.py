"""Recall@10 of an index against exact search, measured on its own vectors when it is built."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medret.index.exact import ExactIndex
from medret.index.neighbours import MISSING, Searchable

RECALL_K = 10
QUERIES_MAX = 256
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class RecallProbe:
    """Queries drawn from a shard and the score that a true neighbour of each must reach.

    rows: (q,) the queries' own rows, which do not count as neighbours. queries: (q, dim) float32.
    thresholds: (q,) float32, the exact k-th best score among the other rows. k: min(10, rows - 1).
    """

    rows: NDArray[np.int64]
    queries: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    k: int


def recall_probe(exact: ExactIndex, *, seed: int = 0, k: int = RECALL_K, queries_max: int = QUERIES_MAX) -> RecallProbe:
    """Draw at most `queries_max` rows and find their exact k-th neighbours' scores."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(exact.rows, min(queries_max, exact.rows), replace=False)).astype(np.int64)
    queries = exact.vectors(rows).astype(np.float32)
    k = min(k, exact.rows - 1)
    if k == 0:
        return RecallProbe(rows, queries, np.empty(len(rows), np.float32), 0)
    scores, _ = _without_self(exact, rows, queries, k)
    return RecallProbe(rows, queries, scores[:, -1], k)


def recall_of(index: Searchable, exact: ExactIndex, probe: RecallProbe) -> float:
    """Share of the k neighbours that `index` gives which are true ones, ties included: 0 to 1.

    A neighbour is true when its exact score is at least the k-th exact score less 1e-6. A single vector has no
    neighbours to miss: 1.
    """
    if probe.k == 0:
        return 1.0
    _, rows = _without_self(index, probe.rows, probe.queries, probe.k)
    reached = exact.scores(probe.queries, rows) >= probe.thresholds[:, None] - TIE_TOLERANCE
    return float(np.mean(reached & (rows != MISSING)))


def _without_self(
    index: Searchable, own: NDArray[np.int64], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best rows other than the query's own: (q, k) scores and rows."""
    found = index.search(queries, k + 1)
    # Its own row last, or, where it was not among the k + 1, the worst of them.
    order = np.argsort(found.rows == own[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found.scores, order, axis=1), np.take_along_axis(found.rows, order, axis=1)
