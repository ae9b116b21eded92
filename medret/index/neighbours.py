"""What a search of one index returns, and the exact cosine that every kind of index reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Rows beyond k that are asked of an index, so that equal scores at the cut are ordered by id and not by chance.
TIE_MARGIN = 8
MISSING = -1


@dataclass(frozen=True)
class Neighbours:
    """Rows found for each query, best first.

    scores: (q, m) float32 inner products of unit vectors (cosines), -inf where nothing was found.
    rows: (q, m) int64 rows of the shard, `MISSING` where nothing was found.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


class Searchable(Protocol):
    """One opened index of one shard."""

    @property
    def rows(self) -> int:
        """How many vectors it holds."""
        ...

    def search(self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None = None) -> Neighbours:
        """The best min(k, rows) rows for each of (q, dim) unit queries, none of them in `excluded`."""
        ...


def no_neighbours(queries: int) -> Neighbours:
    """The answer of a search that asks for nothing: (queries, 0)."""
    return Neighbours(np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64))


def best_first(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Neighbours:
    """The k best of each query's (q, m) candidates by score, then by row; missing rows go last."""
    if rows.size and rows.min() < 0:
        scores = np.where(rows == MISSING, np.float32(-np.inf), scores)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    queries = np.arange(len(rows))[:, None]
    return Neighbours(scores[queries, order], rows[queries, order])
