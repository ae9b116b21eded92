"""HNSW over float16 vectors, inner product. Half the memory of float32 and the faster to build and search."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index.approximate import ApproximateIndex
from medret.index.distinct import Distinct
from medret.index.exact import ExactIndex, float32_batches
from medret.index.neighbours import TIE_MARGIN
from medret.index.parameters import hnsw_parameters
from medret.index.settings import IndexSettings

_faiss: Any = faiss  # its type stubs know no storage

# Up to so many hidden vectors are walked through, whichever they are; beyond, the search is widened by their share.
EXCLUDED_MAX = 2048


def build_hnsw(vectors: NDArray[np.float16], settings: IndexSettings) -> faiss.IndexHNSWSQ:
    """The graph over (n, dim) distinct unit vectors. The same on every run only if FAISS has one thread."""
    quantiser: Any = faiss.ScalarQuantizer.QT_fp16  # the type stubs want an object where FAISS wants its enum
    index = faiss.IndexHNSWSQ(vectors.shape[1], quantiser, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings.hnsw_ef_construction
    for batch in float32_batches(vectors):
        index.add(batch)
    return index


class HnswIndex(ApproximateIndex):
    """An opened HNSW index. Hidden vectors are walked through but not returned."""

    cost_asked, cost_held = 24.0, 0.0

    def __init__(self, index: faiss.IndexHNSWSQ, exact: ExactIndex, distinct: Distinct, ef_search: int) -> None:
        super().__init__(index, exact, distinct)
        self._ef_search = ef_search
        self._own = ExactIndex(_faiss.downcast_index(index.storage))
        self._unfiltered = hnsw_parameters(ef_search, None, self._total)

    def _scores(self, queries: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """From the graph's own vectors, which are the same bits and which the walk has just read."""
        return self._own.scores(queries, numbers)

    def _candidates(
        self, queries: NDArray[np.float32], k: int, hidden: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        total, dropped = self._total, 0 if hidden is None else len(hidden)
        numbers: NDArray[np.int64]
        if dropped <= EXCLUDED_MAX and self.cost_asked * (self._ef_search + dropped) >= kept:
            return None  # a small index: a scan is as fast, and misses nothing
        if not dropped:
            _, numbers = self._index.search(queries, min(k + TIE_MARGIN, total), params=self._unfiltered)
            return numbers
        if hidden is not None and dropped > EXCLUDED_MAX:
            asked = self._asked(k + TIE_MARGIN, kept)
            if asked is None:
                return None
            asked = min(max(asked, self._ef_search), total)
            _, numbers = self._index.search(queries, asked, params=hnsw_parameters(asked, None, total))
            return self._without(numbers, hidden, min(k + TIE_MARGIN, kept))
        # Hidden vectors fill the candidate list too; where they are the nearest, a list no longer than they are many
        # would hold nothing else.
        parameters = hnsw_parameters(self._ef_search + dropped, hidden, total)
        _, numbers = self._index.search(queries, min(k + TIE_MARGIN, total), params=parameters)
        return numbers
