"""LSH: random rotation, one bit a rotated dimension, Hamming scan, best candidates re-scored with the exact cosine.

Embeddings share a strong mean. A zero threshold would give most vectors the same bits, so each bit's threshold is
the median of its rotated dimension over a sample of the shard's own vectors.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index.approximate import ApproximateIndex
from medret.index.distinct import Distinct
from medret.index.exact import ExactIndex, float32_batches
from medret.index.neighbours import TIE_MARGIN
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


class LshIndex(ApproximateIndex):
    """An opened LSH index. `candidates`: how many of the nearest codes are re-scored."""

    cost_asked, cost_held = 1.5, 0.1

    def __init__(self, index: faiss.IndexLSH, exact: ExactIndex, distinct: Distinct, candidates: int) -> None:
        super().__init__(index, exact, distinct)
        self._count = candidates

    def _candidates(
        self, queries: NDArray[np.float32], k: int, hidden: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        total = self._total
        wanted = asked = max(self._count, k + TIE_MARGIN)
        if hidden is not None:  # IndexLSH takes no selector: ask for more instead
            few = len(hidden) <= self._count
            share = None if few else self._asked(wanted, kept)
            if not few and share is None:
                return None
            asked = share or wanted + len(hidden)
        numbers: NDArray[np.int64]
        _, numbers = self._index.search(queries, min(asked, total))
        return numbers if hidden is None else self._without(numbers, hidden, min(wanted, kept))
