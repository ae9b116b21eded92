"""What HNSW and LSH share: candidates from a FAISS index over distinct vectors, re-scored by the exact index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.index.distinct import Distinct
from medret.index.exact import ExactIndex
from medret.index.neighbours import Neighbours, no_neighbours


class ApproximateIndex(ABC):
    """An opened approximate index. What it finds is re-scored: all kinds report the same cosines."""

    def __init__(self, index: Any, exact: ExactIndex, distinct: Distinct) -> None:
        self._index = index
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
        numbers = self._candidates(queries, k, self._distinct.hidden_by(excluded))
        if numbers is None:
            return self._exact.search(queries, k, excluded)
        scores = self._exact.scores(queries, self._distinct.rows_of(numbers))
        return self._distinct.expand(scores, numbers, k, excluded)

    @abstractmethod
    def _candidates(
        self, queries: NDArray[np.float32], k: int, hidden: NDArray[np.int64] | None
    ) -> NDArray[np.int64] | None:
        """(q, m) numbers of distinct vectors, none hidden, MISSING where there are fewer; None: scan instead."""
