"""Build one index shard: exact, LSH and HNSW over the same vectors, their row table, and their measured recall."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import MedretError
from medret.index.approximate import Distinct, first_equal
from medret.index.exact import MISSING, ExactIndex, Searchable, build_exact, float32_batches, one_thread
from medret.index.hnsw import build_hnsw
from medret.index.index_files import approximate_index
from medret.index.lsh import build_lsh
from medret.index.rows import row_order, serialise_rows
from medret.index.settings import AUTO, CODES_RECALL, EXACT, FP16, HNSW, LSH, RABITQ, IndexSettings
from medret.storage import NAME_DIGITS, Location, WrittenFile

ROWS_KIND = "rows"
BUILDING_BYTES = 512 * 2**20  # of a process that builds a shard, beside the vectors: code, threads, buffers
BUILDING_FACTOR = 6  # times the vectors, at the peak
NORM_TOLERANCE = 1e-2  # float16 keeps a unit vector's norm within 1e-3; beyond this it was never normalised


@dataclass(frozen=True)
class IndexShard:
    """The files that `build_shard` wrote.

    shard: key shared by the files of one shard, derived from their content, so equal input gives an equal key.
    files: (kind, file) pairs; kind is hnsw, lsh, exact or rows.
    recall: kind -> recall@10 against exact search.
    seconds: kind -> wall time of building, writing and measuring it.
    """

    shard: str
    rows: int
    dim: int
    files: tuple[tuple[str, WrittenFile], ...]
    recall: Mapping[str, float]
    seconds: Mapping[str, float]


def build_shard(
    store: Location,
    folder: str,
    vectors: NDArray[np.float16],
    rows: pa.Table,
    settings: IndexSettings,
    *,
    use_gpu: bool = False,
) -> IndexShard:
    """Index (n, dim) float16 unit vectors, n >= 1, described by `rows` (schemas.ROWS), into `folder` below the store.

    Rows are sorted by volume_id first. FAISS uses one thread, so that equal input gives equal files on one type of
    processor. use_gpu: measure recall with exact search on a GPU if there is one. Peak memory: see `building_bytes`.
    Raises MedretError when the vectors are not finite unit vectors or the row table does not match them.
    """
    _check(vectors, rows)
    order = row_order(rows)
    if (np.diff(order) != 1).any():
        vectors, rows = vectors[order], rows.take(order)
    files: list[tuple[str, WrittenFile]] = []
    recall: dict[str, float] = {}
    seconds: dict[str, float] = {}
    with one_thread():  # with more, the order of insertion, and so the HNSW graph, differs from run to run
        with _timed(seconds, ROWS_KIND):
            same_as = first_equal(vectors)
            distinct = Distinct(same_as)
            data = serialise_rows(rows, same_as)
            files.append((ROWS_KIND, store.write_content_addressed(folder, ROWS_KIND, ".arrow", data)))
        with _timed(seconds, EXACT):
            flat = build_exact(vectors)
            files.append((EXACT, _write(store, folder, EXACT, flat)))
            exact = ExactIndex(flat, use_gpu=use_gpu)
            probe = recall_probe(exact)
            recall[EXACT] = recall_of(exact, exact, probe)
        if len(distinct.rows) < len(vectors):
            vectors = vectors[distinct.rows]
        for kind in (kind for kind in (LSH, HNSW) if kind in settings.kinds):
            with _timed(seconds, kind):
                for build in _builders(kind, settings):
                    index = build(vectors)
                    recall[kind] = recall_of(approximate_index(kind, index, exact, distinct, settings), exact, probe)
                    if recall[kind] >= CODES_RECALL:
                        break
                files.append((kind, _write(store, folder, kind, index)))
                del index  # one index beside the exact one at a time
    return IndexShard(_shard_key(files), exact.rows, exact.dim, tuple(files), recall, seconds)


def _builders(kind: str, settings: IndexSettings) -> list[Callable[[NDArray[np.float16]], Any]]:
    """How an index can be built, until one finds enough; the last is kept whatever it finds."""
    if kind == LSH:
        return [partial(build_lsh, settings=settings)]
    codes = (RABITQ, FP16) if settings.hnsw_codes == AUTO else (settings.hnsw_codes,)
    return [partial(build_hnsw, settings=replace(settings, hnsw_codes=each)) for each in codes]


def building_bytes(rows: int, dim: int) -> int:
    """The peak memory of a process that builds a shard of (rows, dim) float16 vectors, for its scheduling."""
    return BUILDING_BYTES + BUILDING_FACTOR * rows * dim * np.dtype(np.float16).itemsize


def _write(store: Location, folder: str, kind: str, index: Any) -> WrittenFile:
    data = faiss.serialize_index(index).tobytes()
    return store.write_content_addressed(folder, kind, ".faiss", data)


def _shard_key(files: list[tuple[str, WrittenFile]]) -> str:
    """16 hex digits over what the shard holds: its row table and its vectors."""
    content = {kind: file.sha256 for kind, file in files}
    return hashlib.sha256(f"{content[ROWS_KIND]} {content[EXACT]}".encode()).hexdigest()[:NAME_DIGITS]


def _check(vectors: NDArray[np.float16], rows: pa.Table) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float16 or not vectors.size:
        raise MedretError(
            f"an index shard needs (n, dim) float16 vectors, n >= 1; found {vectors.dtype} of shape {vectors.shape}"
        )
    if rows.num_rows != len(vectors):
        raise MedretError(f"row table has {rows.num_rows} rows for {len(vectors)} vectors: they must match one to one")
    norms = np.concatenate([np.sqrt(np.einsum("ij,ij->i", batch, batch)) for batch in float32_batches(vectors)])
    wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= NORM_TOLERANCE))  # also where the norm is NaN
    if len(wrong):
        row = int(wrong[0])
        raise MedretError(
            f"vector {row} ({rows.column(0)[row].as_py()}) has norm {norms[row]:.4g}, expected 1 within "
            f"{NORM_TOLERANCE}: normalise vectors and leave out those that are not finite before indexing"
        )


@contextmanager
def _timed(seconds: dict[str, float], kind: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[kind] = time.perf_counter() - start


RECALL_K = 10
QUERIES_MAX = 256
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class RecallProbe:
    """Queries drawn from a shard, and the score that a true neighbour of each must reach.

    rows: (q,) rows of the queries, which do not count as neighbours.
    queries: (q, dim) float32.
    thresholds: (q,) float32, the exact k-th best score among the other rows.
    k: min(10, rows - 1).
    """

    rows: NDArray[np.int64]
    queries: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    k: int


def recall_probe(exact: ExactIndex) -> RecallProbe:
    """Draw at most `QUERIES_MAX` rows and find the scores of their exact k-th neighbours."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(exact.rows, min(QUERIES_MAX, exact.rows), replace=False)).astype(np.int64)
    queries = exact.vectors(rows).astype(np.float32)
    k = min(RECALL_K, exact.rows - 1)
    if k == 0:
        return RecallProbe(rows, queries, np.empty(len(rows), np.float32), 0)
    scores, _ = _without_self(exact, rows, queries, k)
    return RecallProbe(rows, queries, scores[:, -1], k)


def recall_of(index: Searchable, exact: ExactIndex, probe: RecallProbe) -> float:
    """The share of true neighbours, ties included, among the k that `index` finds: 0 to 1.

    A neighbour is true if its exact score is at least the k-th exact score minus 1e-6. A single vector has no
    neighbours to miss: 1.
    """
    if probe.k == 0:
        return 1.0
    _, rows = _without_self(index, probe.rows, probe.queries, probe.k)
    reached = exact.scores(probe.queries, rows) >= probe.thresholds[:, None] - TIE_TOLERANCE
    return float(np.mean(reached & (rows != MISSING)))


def _without_self(
    index: Searchable, query_rows: NDArray[np.int64], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best rows other than each query's own: (q, k) scores and rows."""
    neighbours = index.search(queries, k + 1)
    # Drop the query's own row or, if it is not among the k + 1, the worst of them.
    order = np.argsort(neighbours.rows == query_rows[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(neighbours.scores, order, axis=1), np.take_along_axis(neighbours.rows, order, axis=1)


def size_bytes(index: Any) -> int:
    """Size of a FAISS index on disk."""
    return int(faiss.serialize_index(index).nbytes)


def threads() -> int:
    """Number of threads that FAISS builds and searches with."""
    return int(faiss.omp_get_max_threads())
