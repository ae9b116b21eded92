"""LSH: a random rotation (medret.index.approximate), one bit per rotated dimension, and a Hamming scan.

Embeddings share a strong mean; a zero threshold would give most vectors the same bits, so each bit's threshold is the
median of its rotated dimension over a sample of the shard's own vectors.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index.approximate import ApproximateIndex, Distinct, Rotation, Walked
from medret.index.exact import TIE_MARGIN, ExactIndex, float32_batches, threads_for
from medret.index.settings import IndexSettings

TRAIN_ROWS = 16_384  # a median needs no more, and training holds rows x bits float32 twice


def build_lsh(vectors: NDArray[np.float16], settings: IndexSettings) -> faiss.IndexLSH:
    """Build the codes of (n, dim) distinct unit vectors. Thresholds come from at most 16,384 evenly spaced rows."""
    rows, dim = vectors.shape
    bits = settings.bits_for(dim)
    rotation = Rotation(dim, bits)
    index = faiss.IndexLSH(bits, bits, False, True)  # vectors come rotated; train thresholds
    sample = np.linspace(0, rows - 1, min(rows, TRAIN_ROWS)).round().astype(np.int64)
    index.train(rotation.apply(vectors[sample].astype(np.float32)))
    for batch in float32_batches(vectors):
        index.add(rotation.apply(batch))
    return index


class LshIndex(ApproximateIndex):
    """An opened LSH index. candidates: how many of the nearest codes are re-scored.

    An index of an older version holds its own rotation, and is asked with vectors that are not rotated.
    """

    cost_asked, cost_held = 1.5, 0.1

    def __init__(
        self,
        index: Any,  # faiss.IndexLSH, whose type stub lacks rotate_data
        exact: ExactIndex,
        distinct: Distinct,
        candidates: int,
        walked: Walked | None = None,
    ) -> None:
        super().__init__(index, exact, distinct, walked)
        self._count = candidates
        self._rotation = None if index.rotate_data else Rotation(exact.dim, index.nbits)

    def _candidates(
        self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        total = self._total
        needed = asked = max(self._count, k + TIE_MARGIN)
        if excluded is not None:  # IndexLSH takes no selector: ask for more instead
            few = len(excluded) <= self._count
            share = None if few else self._widened(needed, kept)
            if not few and share is None:
                return None
            asked = share or needed + len(excluded)
        turned = queries if self._rotation is None else self._rotation.apply(queries)
        numbers: NDArray[np.int64]
        with threads_for(len(queries)):
            _, numbers = self._index.search(turned, min(asked, total))
        return numbers if excluded is None else self._first_allowed(numbers, excluded, min(needed, kept))
