"""HNSW: a graph of the distinct vectors, walked for candidates. Its nodes hold codes of the vectors, or float16.

Whatever a walk finds is scored again from the exact index, which holds the vectors anyway. So the nodes need no more of
a vector than leads a walk to its neighbours: RaBitQ's codes (Gao and Long, arXiv 2405.12497) of two bits per dimension.
They compare squared distances, which order unit vectors as cosines do, and suppose that every dimension counts the
same: vectors are turned first (medret.index.approximate). float16 nodes are the vectors' own bits.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index.approximate import ApproximateIndex, Distinct, Walked, turned
from medret.index.exact import TIE_MARGIN, ExactIndex, float32_batches, hnsw_parameters, threads_for
from medret.index.settings import FP16, RABITQ_BITS, IndexSettings

_faiss: Any = faiss  # its type stubs lack `storage` and RaBitQ

# Up to this many excluded vectors are walked through; beyond, the search is widened by their share.
EXCLUDED_MAX = 2048
# Codes order candidates roughly: a walk over them lists so many more, and all that it lists are scored again. Recall@10
# of 100,000 synthetic vectors of 768 dimensions is 0.9998 with float16, 0.9982 with codes without it, and 1 with it.
CODES_SLACK = 1.5
# 3.4 us per vector asked for, scoring included, where a scan takes 0.28 us per vector (the same vectors, one thread).
CODES_COST = 12.0
TRAIN_ROWS = 16_384  # for the mean that codes are relative to


def build_hnsw(vectors: NDArray[np.float16], settings: IndexSettings) -> Any:
    """Build the graph over (n, dim) distinct unit vectors: faiss.IndexHNSWSQ, or faiss.IndexHNSWRaBitQ unless fp16.

    It is the same on every run only if FAISS has one thread.
    """
    if settings.hnsw_codes != FP16:
        return _coded(vectors, settings)
    qtype = faiss.ScalarQuantizer.QT_fp16
    index = _faiss.IndexHNSWSQ(vectors.shape[1], qtype, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings.hnsw_ef_construction
    for batch in float32_batches(vectors):
        index.add(batch)
    return index


def _coded(vectors: NDArray[np.float16], settings: IndexSettings) -> Any:
    """A graph whose nodes hold codes. It is built over the codes' first bits, which costs half the time.

    It serves as well as a graph over all bits: recall@10 of 9,159 and of 10,703 slice vectors of mobilenetv2_100, lists
    of 64, is 0.9997 in both, and 1 in a graph over the vectors.
    """
    dim = vectors.shape[1]
    first, index = (_faiss.IndexHNSWRaBitQ(dim, settings.hnsw_m, bits) for bits in (1, RABITQ_BITS))
    first.hnsw.efConstruction = settings.hnsw_ef_construction
    sample = np.linspace(0, len(vectors) - 1, min(len(vectors), TRAIN_ROWS)).round().astype(np.int64)
    codes, staged = _faiss.downcast_index(index.storage), index.hnsw.search_method
    for each in (first, index):
        each.train(turned(vectors[sample].astype(np.float32)))
    for batch in float32_batches(vectors):
        wide = turned(batch)
        first.add(wide)
        codes.add(wide)
    index.hnsw, index.ntotal = first.hnsw, first.ntotal
    index.hnsw.search_method = staged
    return index


class HnswIndex(ApproximateIndex):
    """An opened HNSW index. Excluded vectors are walked through but not returned.

    index: faiss.IndexHNSWSQ or faiss.IndexHNSWRaBitQ. ef_search: length of the candidate list of a walk.
    """

    cost_asked, cost_held = 24.0, 0.0  # with float16 nodes

    def __init__(
        self,
        index: Any,
        exact: ExactIndex,
        distinct: Distinct,
        ef_search: int,
        walked: Walked | None = None,
    ) -> None:
        super().__init__(index, exact, distinct, walked)
        self._turned = isinstance(index, _faiss.IndexHNSWRaBitQ)
        nodes = _faiss.downcast_index(index.storage)
        same_bits = not self._turned and nodes.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        self._graph_vectors = ExactIndex(nodes) if same_bits else None
        self._slack = 1.0 if same_bits else CODES_SLACK
        if not same_bits:
            self.cost_asked = CODES_COST
        self._ef_search = math.ceil(self._slack * ef_search)

    def _scores(self, queries: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Use the graph's vectors, if they have the same bits: they are in the cache after the walk."""
        if self._walked or self._graph_vectors is None:
            return super()._scores(queries, numbers)
        return self._graph_vectors.scores(queries, numbers)

    def _needed(self, k: int) -> int:
        """How many candidates to score again."""
        needed = math.ceil(self._slack * (k + TIE_MARGIN))
        return needed if self._graph_vectors else max(needed, self._ef_search)

    def _candidates(
        self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        with threads_for(len(queries)):
            return self._walk(queries, k, excluded, kept)

    def _walk(
        self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        total, excluded_count = self._total, 0 if excluded is None else len(excluded)
        needed = self._needed(k)
        numbers: NDArray[np.int64]
        if excluded_count <= EXCLUDED_MAX and self.cost_asked * (self._ef_search + excluded_count) >= kept:
            return None  # in a small index a scan is as fast and misses nothing
        if self._turned:
            queries = turned(queries)
        listed = max(needed, self._ef_search)  # FAISS finds no more than that where nodes hold codes
        if not excluded_count:
            _, numbers = self._index.search(queries, min(needed, total), params=hnsw_parameters(listed, None, total))
            return numbers
        if excluded is not None and excluded_count > EXCLUDED_MAX:
            asked = self._widened(needed, kept) if self._graph_vectors else self._widened(needed, kept, slack=1)
            if asked is None:
                return None
            asked = min(max(asked, self._ef_search), total)
            _, numbers = self._index.search(queries, asked, params=hnsw_parameters(asked, None, total))
            return self._first_allowed(numbers, excluded, min(needed, kept), min(k + TIE_MARGIN, kept))
        # Excluded vectors take places in the candidate list too: make room for all of them, in case they are nearest.
        parameters = hnsw_parameters(listed + excluded_count, excluded, total)
        _, numbers = self._index.search(queries, min(needed, total), params=parameters)
        return numbers
