"""Building and searching indices: medret's HNSW against hnswlib, shards in parallel against one build, LSH's memory.

    python bench/index.py [--rows N] [--dim N] [--json]

The vectors are synthetic, clusters of random directions; M and efConstruction are medret's defaults for both.
Everything builds with one thread, as medret does (it builds shards in parallel). Searches are of one batch of
queries on one thread, each library with the shortest candidate list (efSearch) that reaches recall@10 0.99. Without
hnswlib (the extra `bench`) what is compared with it is left out. LSH is measured at the size of a full shard: what it
holds beside the codes is as large for any number of rows. Its recall is an easy one here, because it re-scores 200
candidates and a cluster has 100 vectors; what an index finds among an archive's own is measured when it is built.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import faiss
import numpy as np
from figures import Figure, Measured, main
from numpy.typing import NDArray
from synthetic import clustered, near

from medret.index import EXACT, LSH, Distinct, ExactIndex, IndexSettings, open_approximate, open_exact
from medret.index.approximate import first_equal
from medret.index.exact import build_exact
from medret.index.hnsw import HnswIndex, build_hnsw
from medret.index.lsh import LshIndex, build_lsh

try:
    import hnswlib
except ImportError:
    hnswlib = None

K = 10
RECALL = 0.99
EF_SEARCH = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 192, 256, 512)
CODES = (
    "nodes hold codes of two bits: a graph that fits the processor's cache is walked twice as far for the same recall "
    "as one with float16 (1.4 to 1.7); of larger graphs, less is read from memory"
)
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]  # queries, efSearch -> (q, 10) rows


@dataclass(frozen=True)
class Fit:
    """The shortest candidate list that reaches the recall."""

    ef_search: int
    recall: float


def build_hnswlib(vectors: NDArray[np.float32], settings: IndexSettings) -> tuple[Search, float]:
    """hnswlib with medret's settings, and the seconds that it took to build."""
    index = hnswlib.Index("ip", vectors.shape[1])
    start = time.perf_counter()
    index.init_index(len(vectors), ef_construction=settings.hnsw_ef_construction, M=settings.hnsw_m)
    index.add_items(vectors, num_threads=1)
    seconds = time.perf_counter() - start

    def search(queries: NDArray[np.float32], ef_search: int) -> NDArray[np.int64]:
        index.set_ef(ef_search)
        return np.asarray(index.knn_query(queries, K, num_threads=1)[0], np.int64)

    return search, seconds


def build_medret(vectors: NDArray[np.float16], exact: ExactIndex, settings: IndexSettings) -> tuple[Search, float]:
    """medret's HNSW, and the seconds that it took to build. Its search re-scores what it finds."""
    distinct = Distinct(first_equal(vectors))
    start = time.perf_counter()
    graph = build_hnsw(vectors, settings)
    seconds = time.perf_counter() - start

    def search(queries: NDArray[np.float32], ef_search: int) -> NDArray[np.int64]:
        return HnswIndex(graph, exact, distinct, ef_search).search(queries, K).rows

    return search, seconds


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Share of the true rows that were found."""
    return float(np.mean([np.isin(true, own).mean() for own, true in zip(found, truth, strict=True)]))


def cheapest(search: Search, queries: NDArray[np.float32], truth: NDArray[np.int64]) -> Fit:
    """The first of EF_SEARCH that reaches the recall; the last where none does."""
    fit = Fit(0, 0.0)
    for ef_search in EF_SEARCH:
        fit = Fit(ef_search, recall(search(queries, ef_search), truth))
        if fit.recall >= RECALL:
            break
    return fit


def queries_per_second(
    searches: dict[str, tuple[Search, Fit]], queries: NDArray[np.float32], repeats: int
) -> dict[str, float]:
    """Each library's best of `repeats`, taking turns."""
    best = dict.fromkeys(searches, 0.0)
    for _ in range(repeats):
        for name, (search, fit) in searches.items():
            start = time.perf_counter()
            search(queries, fit.ef_search)
            best[name] = max(best[name], len(queries) / (time.perf_counter() - start))
    return best


def sharded_seconds(path: Path, rows: int, processes: int) -> float:
    """Seconds of one core that all rows take in shards of equal size, one process a shard, all at once."""
    bounds = np.linspace(0, rows, processes + 1).round().astype(int).tolist()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_build_part, [path] * processes, [0] * processes, [min(rows, 256)] * processes))  # imports
        return sum(pool.map(_build_part, [path] * processes, bounds[:-1], bounds[1:]))


def _build_part(path: Path, start: int, stop: int) -> float:
    faiss.omp_set_num_threads(1)
    vectors = np.load(path, mmap_mode="r")[start:stop]
    began = time.perf_counter()
    build_hnsw(vectors, IndexSettings())
    return time.perf_counter() - began


@dataclass(frozen=True)
class Resident:
    """What grew in a process that opened an LSH index and answered queries, in bytes.

    memory: its own, and the pages of the codes. vectors: pages of the mapped vectors that re-score.
    """

    memory: int
    vectors: int


def lsh_resident(folder: Path, rows: int, dim: int) -> Resident:
    """Open both files as a search does and answer each of queries.npy in turn; in a process of its own."""
    faiss.omp_set_num_threads(1)
    queries = np.load(folder / "queries.npy")
    warm = LshIndex(
        build_lsh(queries.astype(np.float16), IndexSettings()),
        ExactIndex(build_exact(queries.astype(np.float16))),
        Distinct(np.arange(len(queries), dtype=np.int32)),
        10,
    )
    warm.search(queries[:1], K)
    before = _anonymous_bytes()
    exact = open_exact(folder / EXACT, rows=rows, dim=dim)
    index = open_approximate(folder / LSH, LSH, exact, Distinct(np.arange(rows, dtype=np.int32)), IndexSettings())
    for query in queries:
        index.search(query[None], K)
    codes, vectors = (_mapped_bytes(folder / name) for name in (LSH, EXACT))
    return Resident(_anonymous_bytes() - before + codes, vectors)


def _anonymous_bytes() -> int:
    return _kilobytes(Path("/proc/self/smaps_rollup").read_text().splitlines(), "Anonymous:")


def _mapped_bytes(path: Path) -> int:
    """Resident pages of a mapped file."""
    total, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            own = line.endswith(f" {path}")
        elif own:
            total += _kilobytes([line], "Rss:")
    return total


def _kilobytes(lines: Iterable[str], name: str) -> int:
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def measured(arguments: argparse.Namespace) -> Measured:
    """All figures."""
    rows, dim = (2000, 64) if arguments.tiny else (arguments.rows, arguments.dim)
    repeats, settings = 1 if arguments.tiny else arguments.repeats, IndexSettings()
    faiss.omp_set_num_threads(1)
    vectors = clustered(rows, dim)
    queries = near(vectors, 100 if arguments.tiny else 1000)
    data = f"synthetic, {rows:,} x {dim}"
    exact = ExactIndex(build_exact(vectors))
    truth = exact.search(queries, K).rows
    facts: dict[str, object] = {
        "rows": rows,
        "dim": dim,
        "m": settings.hnsw_m,
        "ef_construction": settings.hnsw_ef_construction,
    }

    search, alone = build_medret(vectors, exact, settings)
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch) / "vectors.npy", vectors)
        shared = sharded_seconds(Path(scratch) / "vectors.npy", rows, arguments.processes)
    figures = [
        Figure(
            f"HNSW build in {arguments.processes} parallel shards",
            alone / shared,
            0.9,
            f"rows/s per core of one build; {data}",
        )
    ]
    searches = {"medret": (search, cheapest(search, queries, truth))}
    built = {"medret": alone}
    if hnswlib is None:
        print("what is compared with hnswlib is not measured: hnswlib is not installed", file=sys.stderr)
    else:
        theirs, built["hnswlib"] = build_hnswlib(vectors.astype(np.float32), settings)
        searches["hnswlib"] = theirs, cheapest(theirs, queries, truth)
        rates = queries_per_second(searches, queries, repeats)
        figures += [
            Figure("HNSW build", built["hnswlib"] / alone, 1.5, f"hnswlib, one thread; {data}"),
            Figure(
                "HNSW search at recall@10 0.99",
                rates["medret"] / rates["hnswlib"],
                1.5,
                f"hnswlib, one thread; {data}",
                why=CODES,
            ),
        ]
        facts["queries_per_second"] = rates
    facts |= {"build_seconds": built, "sharded_seconds": shared}
    facts["searches"] = {
        name: {"ef_search": fit.ef_search, "recall": fit.recall} for name, (_, fit) in searches.items()
    }
    ours = searches["medret"][1]
    figures.append(Figure(f"HNSW recall@10 at efSearch {ours.ef_search}", ours.recall, RECALL, f"exact search; {data}"))
    del searches, search, exact, vectors
    return Measured(figures + lsh_figures(rows if arguments.tiny else settings.shard_rows, dim, len(queries)), facts)


def lsh_figures(rows: int, dim: int, asked: int) -> list[Figure]:
    """Recall and memory of one shard of so many rows that has answered so many queries."""
    vectors, settings = clustered(rows, dim), IndexSettings()
    queries, data = near(vectors, asked), f"synthetic, {rows:,} x {dim}"
    truth = ExactIndex(build_exact(vectors)).search(queries, K).rows
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "queries.npy", queries)
        codes, flat = build_lsh(vectors, settings), build_exact(vectors)
        faiss.write_index(codes, str(folder / LSH))
        faiss.write_index(flat, str(folder / EXACT))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            resident = pool.submit(lsh_resident, folder, rows, dim).result()
    index = LshIndex(codes, ExactIndex(flat), Distinct(first_equal(vectors)), settings.lsh_candidates)
    float32_bytes = 4 * vectors.size
    fixed = (resident.memory - rows * codes.code_size) / float32_bytes
    return [
        Figure("LSH recall@10, re-scored", recall(index.search(queries, K).rows, truth), 0.98, f"exact search; {data}"),
        Figure("LSH codes", codes.code_size / (4 * dim), 1 / 8, "bytes of float32 vectors", at_least=False),
        Figure(
            "LSH, resident memory without the mapped vectors", resident.memory / float32_bytes, 1 / 8,
            f"bytes of float32 vectors, after {asked:,} queries; {data}", at_least=False,
            why=f"{fixed:.2f} are the rotation and a search's buffers, which do not grow with the rows",
        ),
        Figure(
            "LSH, pages of the mapped vectors that re-scoring touched", resident.vectors / float32_bytes, None,
            "bytes of float32 vectors; the page cache's, given back under pressure",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="of HNSW (default %(default)s)")
    parser.add_argument("--dim", type=int, default=768, help="(default %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="of the parallel build (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of the searches (default %(default)s)")
    main(measured, parser)
