"""Build time, size, latency and recall of HNSW and LSH settings, by the number of vectors and their width.

No archive at hand has a million slices of every width, so the vectors are synthetic. Each is a stored slice vector plus
a share of the difference of two others, rotated at random into the requested width.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.evaluate.query_sets import Report
from medret.evaluate.study import Row, Study, read_slices
from medret.html.plots import lines
from medret.index import Distinct, ExactIndex, IndexSettings, Searchable
from medret.index.build import RECALL_K, TIE_TOLERANCE, size_bytes, threads
from medret.index.exact import build_exact
from medret.index.hnsw import HnswIndex, build_hnsw
from medret.index.lsh import LshIndex, build_lsh
from medret.index.settings import FP16, RABITQ
from medret.search import Snapshot

SIZES = (1_000, 10_000, 100_000)
SIZES_MAX = 1_000_000
DIMS = (384, 768, 1280, 2048)
QUERIES = 200
STORED_MAX = 200_000  # slices that vectors are drawn from, and the rest of their shard
SPREAD = 0.3  # the share of a difference that is added
HNSW_GRAPHS = ((FP16, 16), (FP16, 32), (RABITQ, 16), (RABITQ, 32))  # what nodes hold, links
HNSW_SEARCH = (32, 64, 128)
LSH_BITS = (256, 512, 1024, 2048)


def study_index(
    snapshot: Snapshot,
    *,
    model: str | None = None,
    sizes: Sequence[int] = SIZES,
    dims: Sequence[int] = DIMS,
    seed: int = 0,
    report: Report = lambda _: None,
) -> Study:
    """Build and search every kind of index at every size and width.

    bytes_per_vector: without the exact index, from which candidates are scored again. p50_ms, p95_ms: of one query for
    ten vectors. recall_at_10: of exact search, ties included.
    """
    for size in sizes:
        if not RECALL_K < size <= SIZES_MAX:
            raise UsageError(f"--sizes {size} is not from {RECALL_K + 1} to {SIZES_MAX} vectors")
    for dim in dims:
        if not 8 <= dim <= 8192:
            raise UsageError(f"--dims {dim} is not from 8 to 8192")
    stored = np.concatenate([slices.vectors for slices in read_slices(snapshot, model, STORED_MAX).values()])
    rows: list[Row] = []
    for dim in dims:
        for size in sizes:
            report(f"dim {dim}, {size} vectors: exact")
            vectors = like_stored(stored, size + QUERIES, dim, seed)
            for row in _measured(vectors[:size], vectors[size:].astype(np.float32)):
                rows.append({"dim": dim, "vectors": size, **row})
                report(f"dim {dim}, {size} vectors: {row['index']} {row['setting']}")
    notes = [
        f"synthetic vectors like {len(stored)} stored slice vectors of {snapshot.recipe(model).model.name}",
        f"{QUERIES} queries that are not among the vectors, one at a time; threads of FAISS: {threads()}",
        "bytes_per_vector of HNSW and LSH: without the exact index, from which candidates are scored again",
    ]
    return Study("index", snapshot.uri, snapshot.id, rows, _plots(rows), notes)


def like_stored(stored: NDArray[np.float32], count: int, dim: int, seed: int) -> NDArray[np.float16]:
    """(count, dim) unit vectors with the spread and the neighbourhoods of (n, d) stored ones.

    If dim >= d they are rotated into dim dimensions, with a little noise in all of them; else projected at random.
    """
    rng = np.random.default_rng(seed)
    width = stored.shape[1]
    turn = rng.standard_normal((max(width, dim), min(width, dim)))
    turn, _ = np.linalg.qr(turn)
    turn = turn.T if dim >= width else turn * np.sqrt(width / dim)  # (width, dim), lengths kept (on average)
    made = np.empty((count, dim), np.float16)
    for start in range(0, count, 8192):
        rows = min(8192, count - start)
        first, second, third = (stored[rng.integers(len(stored), size=rows)] for _ in range(3))
        mixed = (first + SPREAD * (second - third)) @ turn.astype(np.float32)
        noise = rng.standard_normal(mixed.shape).astype(np.float32)
        mixed += 0.02 / np.sqrt(dim) * noise * np.linalg.norm(mixed, axis=1, keepdims=True)
        made[start : start + rows] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return made


def _measured(vectors: NDArray[np.float16], queries: NDArray[np.float32]) -> Iterator[dict[str, Any]]:
    flat, seconds = _timed(build_exact, vectors)
    exact = ExactIndex(flat)
    distinct = Distinct(np.arange(len(vectors), dtype=np.int32))  # drawn at random: none equals another
    searched = partial(_searched, exact, queries, exact.search(queries, RECALL_K).scores[:, -1])
    yield {"index": "exact", "setting": "", "build_seconds": seconds, **searched(exact, flat)}
    for nodes, links in HNSW_GRAPHS:
        graph, seconds = _timed(build_hnsw, vectors, IndexSettings(hnsw_m=links, hnsw_codes=nodes))
        for search in HNSW_SEARCH:
            measured = searched(HnswIndex(graph, exact, distinct, search), graph)
            setting = f"{nodes}, M {links}, efSearch {search}"
            yield {"index": "hnsw", "setting": setting, "build_seconds": seconds, **measured}
    for bits in LSH_BITS:
        settings = IndexSettings(lsh_bits=bits)
        codes, seconds = _timed(build_lsh, vectors, settings)
        measured = searched(LshIndex(codes, exact, distinct, settings.lsh_candidates), codes)
        yield {"index": "lsh", "setting": f"{bits} bits", "build_seconds": seconds, **measured}


def _timed(build: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function builds, and the seconds that it takes."""
    start = time.perf_counter()
    return build(*arguments), time.perf_counter() - start


def _searched(
    exact: ExactIndex, queries: NDArray[np.float32], thresholds: NDArray[np.float32], index: Searchable, file: Any
) -> dict[str, float]:
    """Search one query at a time. thresholds: (q,) the exact score that a true neighbour reaches."""
    index.search(queries[:1], RECALL_K)  # warm up, so that the first measurement is like the others
    neighbours, seconds = zip(*(_timed(index.search, query[None], RECALL_K) for query in queries), strict=True)
    scores = exact.scores(queries, np.concatenate([one.rows for one in neighbours]))
    return {
        "bytes_per_vector": size_bytes(file) / index.rows,
        "p50_ms": 1000 * float(np.percentile(seconds, 50)),
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
        "recall_at_10": float((scores >= thresholds[:, None] - TIE_TOLERANCE).mean()),
    }


def _plots(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    plots = []
    for dim in dict.fromkeys(row["dim"] for row in rows):
        for column, title, log in (
            ("recall_at_10", "recall@10 of exact search", False),
            ("p50_ms", "median latency, ms", True),
            ("build_seconds", "build time, s", True),
        ):
            series: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
            for row in rows:
                if row["dim"] == dim:
                    series[f"{row['index']} {row['setting']}".strip()].append((row["vectors"], row[column]))
            heading = f"dim {dim}: {title}"
            plots.append((heading, lines(series, "vectors", title, heading, log)))
    return plots
