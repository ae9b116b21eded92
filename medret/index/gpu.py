"""FAISS's flat index on the GPU, for exact search of many queries. HNSW and LSH have no GPU form in FAISS."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

MAX_K = 2048  # FAISS's limit on k for a GPU index
MIN_QUERIES = 32  # below this, copying a shard to the GPU costs more than scanning it once on the CPU
BATCH_ROWS = 65_536


def available() -> bool:
    """Whether FAISS was built for GPUs and sees one."""
    return bool(getattr(faiss, "get_num_gpus", lambda: 0)() > 0)


class GpuFlat:
    """(n, dim) float16 vectors on the first GPU; products are accumulated in float32."""

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self._resources: Any = faiss.StandardGpuResources()
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = True
        self._index: Any = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1], config)
        for start in range(0, len(vectors), BATCH_ROWS):
            self._index.add(vectors[start : start + BATCH_ROWS].astype(np.float32))

    def search(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The k best rows for each query, (q, k), to be re-scored by the caller."""
        _, rows = self._index.search(np.ascontiguousarray(queries), k)
        return np.asarray(rows, np.int64)
