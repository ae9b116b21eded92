"""What a node of HNSW holds of its vector: float16, bytes, or RaBitQ's codes of one to four bits per dimension.

    python bench/codes.py [--rows N] [--dim N] [--vectors FILE.npy] [--codes NAME]... [--json]

Every kind is built with one thread and medret's other settings, written, opened as a search opens it, and asked one
query at a time; what it finds is scored again from the exact index. Figures are against float16 nodes, which hold the
vectors' own bits. Warm searches take turns. Before cold ones, the pages of both files are given back. A filter keeps
rows at random. --vectors: (n, dim) stored vectors of a model; those that no graph holds, one in fifty, are the queries.
Without it the vectors are synthetic: clusters of random directions that share a mean.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from figures import Figure, Measured, main
from numpy.typing import NDArray
from synthetic import clustered, near

from medret.index import EXACT, HNSW, Distinct, ExactIndex, IndexSettings, centred, fit_centre, open_exact
from medret.index.approximate import first_equal, turned
from medret.index.exact import build_exact, float32_batches
from medret.index.hnsw import HnswIndex, build_hnsw

K = 10
SELECTIVITIES = (0.5, 0.2, 0.1, 0.05, 0.01, 0.001)
TIE = 1e-6
Vectors = NDArray[np.float16]
Queries = NDArray[np.float32]
_faiss: Any = faiss  # its type stubs lack RaBitQ


def scalar(qtype: int) -> Callable[[Vectors, IndexSettings], Any]:
    """A graph over FAISS's scalar quantiser."""

    def build(vectors: Vectors, settings: IndexSettings) -> Any:
        index = _faiss.IndexHNSWSQ(vectors.shape[1], qtype, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.hnsw_ef_construction
        index.train(vectors[:16_384].astype(np.float32))
        for batch in float32_batches(vectors):
            index.add(batch)
        return index

    return build


def rabitq(bits: int, turn: Callable[[Queries], Queries] = turned) -> Callable[[Vectors, IndexSettings], Any]:
    """A graph over RaBitQ's codes, built from them."""

    def build(vectors: Vectors, settings: IndexSettings) -> Any:
        index = _faiss.IndexHNSWRaBitQ(vectors.shape[1], settings.hnsw_m, bits)
        index.hnsw.efConstruction = settings.hnsw_ef_construction
        index.train(turn(vectors[:16_384].astype(np.float32)))
        for batch in float32_batches(vectors):
            index.add(turn(batch))
        return index

    return build


def medrets(codes: str) -> Callable[[Vectors, IndexSettings], Any]:
    """medret's own graph."""
    return lambda vectors, settings: build_hnsw(
        vectors, IndexSettings(hnsw_codes=codes, hnsw_ef_construction=settings.hnsw_ef_construction)
    )


BUILDERS = {
    "fp16": medrets("fp16"),
    "rabitq2": medrets("rabitq2"),
    "int8": scalar(faiss.ScalarQuantizer.QT_8bit),
    "int8 uniform": scalar(faiss.ScalarQuantizer.QT_8bit_uniform),
    "rabitq1": rabitq(1),
    "rabitq4": rabitq(4),
}


@dataclass(frozen=True)
class Kind:
    """One kind of nodes. Times are milliseconds per query; recall by efSearch; filters: share kept -> recall, ms."""

    build_seconds: float
    bytes_per_vector: float
    recall: dict[int, float]
    warm_ms: dict[int, float]
    cold_ms: float
    filters: dict[float, tuple[float, float]] = field(default_factory=dict)


def reached(index: HnswIndex | ExactIndex, exact: ExactIndex, queries: Queries, least: Any, *excluded: Any) -> float:
    """Share of the true neighbours, ties included, that are found."""
    rows = index.search(queries, K, *excluded).rows
    return float((exact.scores(queries, rows) >= least[:, None] - TIE).mean())


def one_at_a_time(index: HnswIndex, queries: Queries, *excluded: Any) -> float:
    """Median milliseconds per query."""
    times = []
    for query in queries:
        start = time.perf_counter()
        index.search(query[None], K, *excluded)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def cold(path: Path, exact_path: Path, distinct: Distinct, shape: tuple[int, int], queries: Queries, ef: int) -> float:
    """Mean milliseconds of the first queries after both files' pages were given back."""
    for file in (path, exact_path):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    exact = open_exact(exact_path, rows=shape[0], dim=shape[1])
    index = HnswIndex(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), exact, distinct, ef)
    start = time.perf_counter()
    for query in queries:
        index.search(query[None], K)
    return (time.perf_counter() - start) / len(queries) * 1e3


def measure(
    names: list[str], vectors: Vectors, queries: Queries, settings: IndexSettings, widths: list[int], repeats: int
) -> dict[str, Kind]:
    """Every kind over the same vectors."""
    exact, distinct = ExactIndex(build_exact(vectors)), Distinct(first_equal(vectors))
    chosen = vectors[distinct.rows]
    least = exact.search(queries, K).scores[:, -1]
    kinds: dict[str, Kind] = {}
    graphs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        exact_path = Path(scratch, EXACT)
        faiss.write_index(build_exact(vectors), str(exact_path))
        for name in names:
            start = time.process_time()
            graphs[name] = BUILDERS[name](chosen, settings)
            seconds = time.process_time() - start
            path = Path(scratch, f"{HNSW}-{name.replace(' ', '-')}")
            faiss.write_index(graphs[name], str(path))
            recall = {ef: reached(HnswIndex(graphs[name], exact, distinct, ef), exact, queries, least) for ef in widths}
            first = cold(path, exact_path, distinct, vectors.shape, queries[:50], settings.hnsw_ef_search)
            kinds[name] = Kind(seconds, path.stat().st_size / len(vectors), recall, {}, first)
            print(name, asdict(kinds[name]), flush=True) if os.environ.get("SHOW") else None
    for _ in range(repeats):
        for name in names:
            for ef in widths:
                spent = one_at_a_time(HnswIndex(graphs[name], exact, distinct, ef), queries)
                kinds[name].warm_ms[ef] = min(kinds[name].warm_ms.get(ef, np.inf), spent)
    for share in SELECTIVITIES:
        kept = np.random.default_rng(1).permutation(len(vectors))[: max(K, round(share * len(vectors)))]
        excluded = np.setdiff1d(np.arange(len(vectors)), kept)
        lowest = exact.search(queries, K, excluded).scores[:, -1]
        for name in names:
            index = HnswIndex(graphs[name], exact, distinct, settings.hnsw_ef_search)
            found = reached(index, exact, queries, lowest, excluded)
            kinds[name].filters[share] = found, one_at_a_time(index, queries[:50], excluded)
    return kinds


def stored(path: Path, rows: int) -> tuple[Vectors, Queries]:
    """Vectors of a file and queries that are not among them, as directions from their mean."""
    raw = np.load(path, mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(raw))[: rows + rows // 50]
    asked = order[: max(1, len(order) // 50)][:1000]
    held = np.sort(order[len(order) // 50 :])
    centre = fit_centre([raw[held].sum(axis=0, dtype=np.float64)], len(held), len(held))
    return centred(raw[held], centre).astype(np.float16), centred(raw[np.sort(asked)], centre)


def measured(arguments: argparse.Namespace) -> Measured:
    """All figures."""
    rows, dim = (2500, 64) if arguments.tiny else (arguments.rows, arguments.dim)
    settings = IndexSettings(hnsw_ef_construction=40 if arguments.tiny else arguments.ef_construction)
    faiss.omp_set_num_threads(1)
    if arguments.vectors:
        vectors, queries = stored(arguments.vectors, rows)
        data = f"stored vectors of {arguments.vectors.stem}, {len(vectors):,} x {vectors.shape[1]}"
    else:
        raw = clustered(rows, dim)
        centre = fit_centre([raw.sum(axis=0, dtype=np.float64)], rows, rows)
        vectors, queries = (
            centred(raw, centre).astype(np.float16),
            centred(near(raw, 20 if arguments.tiny else 500), centre),
        )
        data = f"synthetic, {rows:,} x {dim}"
    names = list(BUILDERS) if arguments.tiny or not arguments.codes else ["fp16", *arguments.codes]
    widths = [settings.hnsw_ef_search] if arguments.tiny else arguments.ef_search
    kinds = measure(names, vectors, queries, settings, widths, 1 if arguments.tiny else arguments.repeats)
    base, figures = kinds["fp16"], []
    for name, kind in kinds.items():
        if name == "fp16":
            continue
        against = f"float16 nodes; {data}"
        figures += [
            Figure(f"{name}, bytes per vector", kind.bytes_per_vector / base.bytes_per_vector, None, against, False),
            Figure(f"{name}, build time", kind.build_seconds / base.build_seconds, None, against, False),
            Figure(f"{name}, cold query", kind.cold_ms / base.cold_ms, None, against, False),
        ]
        for ef in widths:
            figures += [
                Figure(f"{name}, recall@10 at efSearch {ef}", kind.recall[ef], None, f"exact search; {data}"),
                Figure(f"{name}, warm query at efSearch {ef}", kind.warm_ms[ef] / base.warm_ms[widths[0]], None,
                       f"float16 nodes at efSearch {widths[0]}; {data}", False),
            ]  # fmt: skip
        least = min(kind.filters.items(), key=lambda item: item[1][0])
        figures.append(
            Figure(f"{name}, lowest filtered recall@10, at {least[0]:.1%} kept", least[1][0], None, f"exact; {data}")
        )
    return Measured(figures, {"data": data, "kinds": {name: asdict(kind) for name, kind in kinds.items()}})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="(default %(default)s)")
    parser.add_argument("--dim", type=int, default=768, help="(default %(default)s)")
    parser.add_argument("--vectors", type=Path, metavar="FILE", help="stored vectors, instead of synthetic ones")
    parser.add_argument(
        "--codes", action="append", choices=list(BUILDERS), help="beside fp16; repeatable (default all)"
    )
    parser.add_argument("--ef-search", type=int, nargs="+", default=[64, 128, 200], help="(default %(default)s)")
    parser.add_argument("--ef-construction", type=int, default=200, help="(default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of the searches (default %(default)s)")
    main(measured, parser)
