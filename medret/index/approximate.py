"""What HNSW and LSH share: candidates from a FAISS index over distinct vectors, re-scored by the exact index.

With many rows excluded (a filter), an approximate index finds mostly what it must not return. So it is asked for more,
in proportion; where few rows are kept, and for queries that still find too few (their neighbourhood is what
was filtered away), the kept rows are scanned, which is exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.index.distinct import Distinct
from medret.index.exact import ExactIndex
from medret.index.neighbours import MISSING, Neighbours, no_neighbours
from medret.index.parameters import mask_of_rows

# Kept vectors are not spread evenly: more are asked for than their share calls for.
ASK_SLACK = 1.5


class ApproximateIndex(ABC):
    """An opened approximate index. What it finds is re-scored: all kinds report the same cosines."""

    # What a filtered search costs, in vectors that are scanned in the same time: for each vector that the index is
    # asked for, and for each that it holds. With fewer vectors kept than that, they are scanned. bench/filter.py, one
    # thread, 50,000 synthetic vectors x 768, k = 10, milliseconds a query:
    #     kept       50 %   20 %   10 %    5 %    1 %   0.1 %
    #     scan        7.1    4.1    2.7    1.3    0.4    0.3
    #     HNSW        0.8    1.2    2.6    4.4   14.5    212
    #     LSH         1.7    2.6    3.4    4.7    7.0    0.2 (it falls back to the scan)
    # So both switch between 20 % and 10 % there; LSH, which loses recall on the way (0.96 at 10 %), somewhat earlier.
    cost_asked: float
    cost_held: float

    def __init__(self, index: Any, exact: ExactIndex, distinct: Distinct) -> None:
        self._index = index
        self._total = int(index.ntotal)
        self._exact = exact
        self._distinct = distinct

    @property
    def rows(self) -> int:
        """Vectors in the shard."""
        return self._exact.rows

    def search(self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None = None) -> Neighbours:
        """The best min(k, rows) rows for each of (q, dim) unit queries, approximately, none of them in `excluded`."""
        k = min(k, self.rows)
        if k <= 0 or not len(queries):
            return no_neighbours(len(queries))
        hidden = self._distinct.hidden_by(excluded)
        kept = self._total - (0 if hidden is None else len(hidden))
        numbers = self._candidates(queries, k, hidden, kept)
        if numbers is None:
            return self._exact.search(queries, k, excluded)
        scores = self._scores(queries, numbers)
        found = self._distinct.expand(scores, numbers, k, excluded)
        if not (numbers == MISSING).any():
            return found
        short = np.flatnonzero((numbers != MISSING).sum(axis=1) < min(k, kept))
        if len(short):
            scanned = self._exact.search(queries[short], found.rows.shape[1], excluded)
            found.scores[short, : scanned.scores.shape[1]] = scanned.scores
            found.rows[short, : scanned.rows.shape[1]] = scanned.rows
        return found

    def _scores(self, queries: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The exact cosines of (q, dim) queries with their own (q, m) numbered vectors."""
        return self._exact.scores(queries, self._distinct.rows_of(numbers))

    @abstractmethod
    def _candidates(
        self, queries: NDArray[np.float32], k: int, hidden: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        """(q, m) numbers of distinct vectors, m >= k, none hidden, MISSING where there are fewer; None: scan instead.

        kept: how many are not hidden.
        """

    def _asked(self, wanted: int, kept: int) -> int | None:
        """Of how many nearest vectors about `wanted` are kept ones; None where a scan is the faster way."""
        total = self._total
        asked = math.ceil(ASK_SLACK * wanted * total / max(kept, 1))
        walk = self.cost_asked * asked + self.cost_held * total
        return asked if walk < kept and asked < total else None

    def _without(self, numbers: NDArray[np.int64], hidden: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
        """The first `wanted` numbers that are not hidden; none of a query that has fewer, which is scanned then."""
        gone = (numbers == MISSING) | mask_of_rows(hidden, self._total)[numbers]
        first = np.argsort(gone, axis=1, kind="stable")[:, :wanted]
        left: NDArray[np.int64] = np.take_along_axis(numbers, first, axis=1)
        left[np.take_along_axis(gone, first, axis=1).any(axis=1)] = MISSING
        return left
