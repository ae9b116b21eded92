"""The exact index of a shard: its unit vectors in float16, row for row, scanned in full; and what all indices share.

Every index answers with `Neighbours`. The exact one is also the shard's vector store: approximate candidates are
re-scored from it, and searching by volume_id reads from it. It is memory-mapped, so only the rows that are touched
become resident. Many queries at once are searched on a GPU where there is one; HNSW and LSH have no GPU form in FAISS.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

# An index is asked for this many rows beyond k, so that rows with equal scores at the cut are ordered by id.
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
        """The best min(k, rows) rows for each of (q, dim) unit queries, without the rows in `excluded`."""
        ...


def no_neighbours(queries: int) -> Neighbours:
    """The result of a search for no rows: (queries, 0)."""
    return Neighbours(np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64))


def best_first(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Neighbours:
    """The k best of each query's (q, m) candidates by score, then by row; missing rows go last."""
    if rows.size and rows.min() < 0:
        scores = np.where(rows == MISSING, np.float32(-np.inf), scores)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    queries = np.arange(len(rows))[:, None]
    return Neighbours(scores[queries, order], rows[queries, order])


_faiss: Any = faiss  # its type stubs lack these classes and arguments


def all_but(excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """FAISS selector (bitmap) for all rows except `excluded`; None if nothing is excluded."""
    if excluded is None or not len(excluded):
        return None
    return _faiss.IDSelectorBitmap(np.packbits(~mask_of_rows(excluded, rows), bitorder="little"))


def mask_of_rows(chosen: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """(rows,) whether each row is one of `chosen`."""
    mask = np.zeros(rows, np.bool_)
    mask[chosen] = True
    return mask


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit what this thread asks of FAISS to one thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def threads_for(vectors: int) -> AbstractContextManager[None]:
    """FAISS's threads while it works on so many vectors. It spreads vectors over them, so one needs one.

    It would wait for the others, which have nothing to do; on a busy machine that takes 20 to 80 ms.
    """
    return one_thread() if vectors == 1 else nullcontext()


def scan_parameters(excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """FAISS's parameters for an exhaustive search."""
    return _faiss.SearchParameters(sel=all_but(excluded, rows))


def hnsw_parameters(ef_search: int, excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """FAISS's parameters for a search in an HNSW graph."""
    return _faiss.SearchParametersHNSW(sel=all_but(excluded, rows), efSearch=ef_search)


BATCH_ROWS = 16_384  # rows converted to float32 at a time while building
SCALE = 2.0**112  # of `scaled_float32`: float32's exponent counts from 127, that of float16 from 15
RESCORE_BYTES = 2 << 20  # size of the float64 copy of candidates while re-scoring: it fits in a core's cache
GPU_MAX_K = 2048  # FAISS's limit on k for a GPU index
GPU_MIN_QUERIES = 32  # below this, copying a shard to the GPU costs more than scanning it once on the CPU


def build_exact(vectors: NDArray[np.float16]) -> faiss.IndexScalarQuantizer:
    """Build an inner-product index over (n, dim) float16 vectors; its codes are the vectors' own bits."""
    index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for batch in float32_batches(vectors):
        index.add(batch)
    return index


def float32_batches(vectors: NDArray[np.float16]) -> Iterator[NDArray[np.float32]]:
    """`vectors` in order, `BATCH_ROWS` at a time, as float32 (what FAISS takes)."""
    for start in range(0, len(vectors), BATCH_ROWS):
        yield np.ascontiguousarray(vectors[start : start + BATCH_ROWS], dtype=np.float32)


def scaled_float32(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(..., 2 dim) bytes of finite float16 values -> (..., dim) float32, exactly the values divided by SCALE.

    It moves their bits to where float32 has them, in less than half the time of numpy's conversion.
    """
    bits = codes.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70000001)  # all but the three bits into which the sign was extended
    return bits.view(np.float32)


class ExactIndex:
    """An opened exact index: exhaustive search, and the vectors by row.

    use_gpu: search batches on the GPU if there is one; the vectors are copied there at the first such batch.
    """

    def __init__(self, index: faiss.IndexScalarQuantizer, *, use_gpu: bool = False) -> None:
        self._index = index
        self._use_gpu = use_gpu and gpu_available()
        self._gpu: GpuFlat | None = None
        self._gpu_lock = Lock()
        self.rows, self.dim = int(index.ntotal), int(index.d)  # vectors in the shard, width of a vector
        codes = index.codes
        # uint8, because the codes start at an odd offset of the mapped file: a float16 view would be unaligned.
        self._codes: NDArray[np.uint8] = (
            faiss.rev_swig_ptr(codes.data(), codes.size()).reshape(self.rows, 2 * self.dim)
            if self.rows
            else np.empty((0, 2 * self.dim), np.uint8)
        )

    def codes(self, rows: slice) -> NDArray[np.uint8]:
        """The bytes of neighbouring vectors, not copied: (len(rows), 2 dim)."""
        return self._codes[rows]

    def vectors(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float16]:
        """The stored unit vectors of `rows`: (n, dim) float16, a copy of numbered rows, a read-only view of a slice."""
        picked: NDArray[np.uint8] = np.ascontiguousarray(self._codes[rows])
        return picked.view(np.float16)

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(q, m) float32: exact inner products of each of (q, dim) queries with its candidate `rows` (q, m).

        Sums are float64, so that equal vectors get equal scores in any row. Missing rows score -inf.
        """
        scores = np.empty(rows.shape, np.float32)
        if not rows.size:
            return scores
        step = max(1, RESCORE_BYTES // (8 * self.dim * rows.shape[1]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            stored = scaled_float32(self._codes.take(part, axis=0)).astype(np.float64)
            wide = SCALE * queries[start : start + step].astype(np.float64)[:, :, None]
            scores[start : start + step] = np.matmul(stored, wide)[:, :, 0]
        if rows.min() < 0:
            scores[rows == MISSING] = -np.inf
        return scores

    def search(self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None = None) -> Neighbours:
        """Scan all rows for the best min(k, rows) of each query."""
        k = min(k, self.rows)
        if k <= 0 or not len(queries):
            return no_neighbours(len(queries))
        excluded_count = 0 if excluded is None else len(excluded)
        depth = min(k + TIE_MARGIN, self.rows)
        rows = self._on_gpu(queries, depth + excluded_count)
        if rows is not None:
            if excluded is not None:
                rows = np.where(np.isin(rows, excluded), MISSING, rows)
        else:
            with threads_for(len(queries)):
                _, rows = self._index.search(queries, depth, params=scan_parameters(excluded, self.rows))
        return best_first(self.scores(queries, rows), rows, k)

    def _on_gpu(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64] | None:
        """The best min(k, rows) rows of each query by the GPU, one batch at a time; None where it is not used."""
        if not self._use_gpu or len(queries) < GPU_MIN_QUERIES or k > GPU_MAX_K:
            return None
        with self._gpu_lock:  # FAISS takes no two searches of one GPU index at a time
            if self._gpu is None:
                try:
                    self._gpu = GpuFlat(self.vectors(slice(None)))
                except RuntimeError as error:  # FAISS's form of "out of GPU memory"
                    self._use_gpu = False
                    warnings.warn(f"exact search of {self.rows} vectors stays on the CPU: {error}", stacklevel=3)
                    return None
            return self._gpu.search(queries, min(k, self.rows))


def gpu_available() -> bool:
    """Whether FAISS was built for GPUs and sees one."""
    return bool(getattr(faiss, "get_num_gpus", lambda: 0)() > 0)


class GpuFlat:
    """(n, dim) float16 vectors on the first GPU; FAISS sums their products in float32."""

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self._resources: Any = faiss.StandardGpuResources()
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = True
        self._index: Any = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1], config)
        for batch in float32_batches(vectors):
            self._index.add(batch)

    def search(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The k best rows for each query, (q, k); the caller re-scores them."""
        _, rows = self._index.search(np.ascontiguousarray(queries), k)
        return np.asarray(rows, np.int64)
