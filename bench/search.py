"""Searching a published store of a million volumes, against nothing but FAISS over the same files.

    python bench/search.py [--rows N] [--dim N] [--json]

The store is synthetic: made-up vectors and labels, written by medret's own functions, sharded as medret does, with
medret's settings but for efConstruction, which is 40 to keep the build short. Every volume has one slice, which a
search compares with the query as it does with any number of them. Both may use the machine's threads: FAISS searches
for one query with one, and is asked one shard after the other; medret asks as many shards at a time as there are
threads. FAISS alone gives row numbers; medret gives volume ids, exact cosines, labels, URIs, and the slice of each hit
that is most like the query.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from figures import Figure, Measured, main
from numpy.typing import NDArray
from synthetic import SETTINGS, Plan, clustered, near, write_store

import medret
from medret.index import HNSW, IndexShard
from medret.index.approximate import turned
from medret.index.exact import hnsw_parameters
from medret.index.hnsw import CODES_SLACK
from medret.storage.objects import CACHE_VARIABLE

K = 10
FEW = 10_000  # vectors, for the cost of one
Ask = Callable[[Any], object]
OPENED = 5  # processes
COLD = (
    "labels, URI and slices of ten hits are some hundred scattered reads, each shard's candidates are re-scored apart, "
    "and after the walk through the graphs none of that is in the processor's cache"
)
GROWS = (
    "the walks through a graph grow with the logarithm of its size, and a large one does not fit the processor's "
    "cache; beyond a full shard (262,144 vectors) nothing grows"
)


def opening_ms(root: str, query: Any) -> tuple[float, float]:
    """Milliseconds until a store is open, and until its first answer, in a process that has imported medret."""
    from medret import open_snapshot

    start = time.perf_counter()
    snapshot = open_snapshot(root)
    opened = time.perf_counter()
    snapshot.search(query, K)
    return (opened - start) * 1e3, (time.perf_counter() - start) * 1e3


def openings_ms(root: str, query: Any, processes: int) -> tuple[float, float]:
    """The medians over several processes; the first, which checks the files' sha256 once and for all, not counted."""
    times = []
    for _ in range(processes + 1):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            times.append(pool.submit(opening_ms, root, query).result())
    opened, answered = np.median(times[1:], axis=0).tolist()
    return opened, answered


def bare(files: Sequence[Path], ef_search: int) -> Ask:
    """FAISS over the same index files, mapped as medret maps them: as long walks, and nothing is scored again."""
    indices: list[Any] = [faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC) for path in files]
    coded = any(not isinstance(index, faiss.IndexHNSWSQ) for index in indices)
    listed = math.ceil(CODES_SLACK * ef_search) if coded else ef_search
    parameters, count = hnsw_parameters(listed, None, 0), listed if coded else K

    def ask(query: NDArray[np.float32]) -> Any:
        asked = turned(query[None]) if coded else query[None]
        return [index.search(asked, count, params=parameters) for index in indices]

    return ask


def latencies_ms(routes: dict[str, tuple[Ask, Iterable[Any]]], repeats: int) -> dict[str, tuple[float, float]]:
    """p50 and p95 of each route, best of `repeats` passes that take turns, after one that is not counted."""
    best: dict[str, tuple[float, float]] = {}
    for number in range(repeats + 1):
        for name, (ask, queries) in routes.items():
            p50, p95 = np.percentile([_milliseconds(ask, query) for query in queries], (50, 95)).tolist()
            if number:
                held = best.get(name, (p50, p95))
                best[name] = min(held[0], p50), min(held[1], p95)
    return best


def _milliseconds(ask: Ask, query: Any) -> float:
    start = time.perf_counter()
    ask(query)
    return (time.perf_counter() - start) * 1e3


def microseconds_a_vector(shards: Sequence[IndexShard]) -> float:
    """Of building the HNSW graphs and measuring their recall."""
    return sum(shard.seconds[HNSW] for shard in shards) / sum(shard.rows for shard in shards) * 1e6


def measured(arguments: argparse.Namespace) -> Measured:
    """Make the stores, and all figures."""
    rows, dim = (FEW // 5, 32) if arguments.tiny else (arguments.rows, arguments.dim)
    few = FEW // 10 if arguments.tiny else FEW
    plan = Plan(rows, dim, settings=replace(SETTINGS, hnsw_ef_construction=40))
    small, processes = replace(plan, rows=few), 1 if arguments.tiny else arguments.processes
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        os.environ[CACHE_VARIABLE] = f"{scratch}/cache"
        roots = [f"{scratch}/many", f"{scratch}/few"]
        built = [write_store(root, each, processes) for root, each in zip(roots, (plan, small), strict=True)]
        return _searched(arguments, plan, small, roots, built)


def _searched(
    arguments: argparse.Namespace, plan: Plan, small: Plan, roots: list[str], built: list[list[IndexShard]]
) -> Measured:
    count = 50 if arguments.tiny else arguments.queries
    queries = near(clustered(4096, plan.dim, seed=9, clusters=plan.clusters), count)
    few = near(clustered(4096, plan.dim, seed=9, clusters=small.clusters), count)
    opened, answered = openings_ms(roots[0], queries[0], 1 if arguments.tiny else OPENED)
    many, small_store = (medret.open_snapshot(root) for root in roots)
    graphs = [Path(roots[0], file.path) for shard in built[0] for kind, file in shard.files if kind == HNSW]
    ids = [many.search(query, 1)[0].volume_id for query in queries[:: max(1, len(queries) // 200)]]
    routes: dict[str, tuple[Ask, Iterable[Any]]] = {
        "FAISS": (bare(graphs, plan.settings.hnsw_ef_search), queries),
        "vector": (many.search, queries),
        "id": (many.search, ids),
        "few": (small_store.search, few),
    }
    took = latencies_ms(routes, 1 if arguments.tiny else arguments.repeats)
    size = f"synthetic store, {plan.rows:,} x {plan.dim}"
    alone, less = f"FAISS alone, shard by shard, {size}", f"the same of {small.rows:,} vectors; {size}"
    vector, faiss_alone = took["vector"], took["FAISS"]
    per_vector = [microseconds_a_vector(shards) for shards in built]
    figures = [
        _most("a snapshot opens", opened, 50, size, unit="ms"),
        _most("its first answer, opening included", answered, None, size, unit="ms"),
        _most("p95 of a search by vector", vector[1] / faiss_alone[1], 1.3, alone, why=COLD),
        _most("p50 of a search by vector", vector[0] / faiss_alone[0], None, alone),
        _most("added to the p50 of a search by vector", max(0, vector[0] - faiss_alone[0]), None, alone, unit="ms"),
        _most("p95 of a search by volume_id, its slices located in each hit", took["id"][1], None, size, unit="ms"),
        _most("HNSW build time a vector", per_vector[0] / per_vector[1], 1.1, less, why=GROWS),
        _most("p50 of a search by vector", vector[0] / took["few"][0], None, less),
    ]
    facts = {
        "rows": plan.rows, "dim": plan.dim, "shards": len(built[0]), "settings": plan.settings.to_json(),
        "p50_and_p95_ms": took, "build_us_a_vector": per_vector,
        "recall": [dict(shard.recall) for shard in built[0]],
    }  # fmt: skip
    return Measured(figures, facts)


def _most(name: str, found: float, wanted: float | None, against: str, *, unit: str = "", why: str = "") -> Figure:
    return Figure(name, found, wanted, against, at_least=False, unit=unit, why=why)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="(default %(default)s)")
    parser.add_argument("--dim", type=int, default=768, help="(default %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="(default %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that build the store (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    parser.add_argument(
        "--scratch", help="a folder with room for the store, removed at the end (default: the system's)"
    )
    main(measured, parser)
