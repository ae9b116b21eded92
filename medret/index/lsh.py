"""LSH: random rotation, one bit a rotated dimension, Hamming scan, best candidates re-scored with the exact cosine.

Embeddings share a strong mean. A zero threshold would give most vectors the same bits, so each bit's threshold is
the median of its rotated dimension over a sample of the shard's own vectors.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index.distinct import Distinct
from medret.index.exact import ExactIndex, float32_batches
from medret.index.neighbours import MISSING, TIE_MARGIN, Neighbours, no_neighbours
from medret.index.settings import IndexSettings

TRAIN_ROWS = 16_384  # a median needs no more, and training holds rows x bits float32 twice


def build_lsh(vectors: NDArray[np.float16], settings: IndexSettings) -> faiss.IndexLSH:
    """Codes of (n, dim) distinct unit vectors. Thresholds come from at most 16,384 evenly spaced rows."""
    rows, dim = vectors.shape
    index = faiss.IndexLSH(dim, settings.bits_for(dim), True, True)  # rotate, train thresholds
    sample = np.linspace(0, rows - 1, min(rows, TRAIN_ROWS)).round().astype(np.int64)
    index.train(vectors[sample].astype(np.float32))
    for batch in float32_batches(vectors):
        index.add(batch)
    return index


class LshIndex:
    """An opened LSH index and the exact index that re-scores its candidates."""

    def __init__(self, index: faiss.IndexLSH, exact: ExactIndex, distinct: Distinct, candidates: int) -> None:
        self._index = index
        self._exact = exact
        self._distinct = distinct
        self._candidates = candidates

    @property
    def rows(self) -> int:
        """Vectors in the shard."""
        return self._exact.rows

    def search(self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None = None) -> Neighbours:
        """The best rows for each query, approximately; scores are exact cosines."""
        k = min(k, self.rows)
        if k <= 0 or not len(queries):
            return no_neighbours(len(queries))
        hidden = self._distinct.hidden_by(excluded)
        dropped = 0 if hidden is None else len(hidden)  # IndexLSH takes no selector: ask for more instead
        wanted = max(self._candidates, k + TIE_MARGIN) + dropped
        _, numbers = self._index.search(queries, min(wanted, int(self._index.ntotal)))
        if hidden is not None:
            numbers = np.where(np.isin(numbers, hidden), MISSING, numbers)
        scores = self._exact.scores(queries, self._distinct.rows_of(numbers))
        return self._distinct.expand(scores, numbers, k, excluded)
