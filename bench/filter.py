"""Filtered search: scanning the kept rows against walking the index, at several selectivities.

    python bench/filter.py --rows 50000 --dim 768

The vectors are synthetic: clusters of random directions. The filter keeps rows at random. Prints a table a kind of
index: the scan, the index whatever it costs, and what medret chooses (medret.index.approximate).
"""

from __future__ import annotations

import argparse
import time

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index import Distinct, ExactIndex, IndexSettings
from medret.index.approximate import ApproximateIndex
from medret.index.distinct import first_equal
from medret.index.exact import build_exact
from medret.index.hnsw import HnswIndex, build_hnsw
from medret.index.lsh import LshIndex, build_lsh
from medret.index.neighbours import MISSING, Neighbours, Searchable

SELECTIVITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01, 0.003, 0.001)
K = 10


def clustered(rows: int, dim: int, seed: int = 0) -> NDArray[np.float16]:
    """(rows, dim) unit vectors around rows / 100 directions that share a mean."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, rows // 100), dim)) + rng.standard_normal(dim)
    vectors = centres[rng.integers(len(centres), size=rows)] + 0.7 * rng.standard_normal((rows, dim))
    unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return unit


def milliseconds(index: Searchable, queries: NDArray[np.float32], excluded: NDArray[np.int64] | None = None) -> float:
    """Median time of one query."""
    times = []
    for query in queries:
        start = time.perf_counter()
        index.search(query[None], K, excluded)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def recall(found: Neighbours, truth: Neighbours) -> float:
    """Share of the true rows that were found."""
    pairs = zip(found.rows, truth.rows, strict=True)
    return float(np.mean([np.isin(true[true != MISSING], own).mean() for own, true in pairs]))


def measure(index: ApproximateIndex, exact: ExactIndex, queries: NDArray[np.float32]) -> None:
    """One line a selectivity."""
    rng = np.random.default_rng(1)
    costs = index.cost_asked, index.cost_held
    for share in SELECTIVITIES:
        kept = rng.permutation(exact.rows)[: max(K, round(share * exact.rows))]
        excluded = np.setdiff1d(np.arange(exact.rows), kept)
        truth = exact.search(queries, K, excluded)
        scan = milliseconds(exact, queries, excluded)
        index.cost_asked = index.cost_held = 0.0
        walk = milliseconds(index, queries, excluded)
        reached = recall(index.search(queries, K, excluded), truth)
        index.cost_asked, index.cost_held = costs
        chosen = milliseconds(index, queries, excluded)
        print(f"{share:>11.1%} {len(kept):>8} {scan:>9.2f} {walk:>9.2f} {reached:>9.3f} {chosen:>10.2f}", flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=50)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    vectors = clustered(arguments.rows, arguments.dim)
    noise = np.random.default_rng(2).standard_normal((arguments.queries, arguments.dim)) / arguments.dim**0.5
    queries = vectors[:: max(1, arguments.rows // arguments.queries)][: arguments.queries] + 0.3 * noise
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    settings, exact = IndexSettings(), ExactIndex(build_exact(vectors))
    distinct = Distinct(first_equal(vectors))
    print(f"{arguments.rows} synthetic vectors x {arguments.dim}, one thread")
    faiss.omp_set_num_threads(2)
    hnsw = HnswIndex(build_hnsw(vectors, settings), exact, distinct, settings.hnsw_ef_search)
    faiss.omp_set_num_threads(1)
    lsh = LshIndex(build_lsh(vectors, settings), exact, distinct, settings.lsh_candidates)
    for name, index in (("hnsw", hnsw), ("lsh", lsh)):
        unfiltered = milliseconds(index, queries)
        print(f"\n{name}: {unfiltered:.2f} ms a query without a filter")
        print("selectivity     kept  scan, ms  walk, ms    recall  chosen, ms")
        measure(index, exact, queries)


if __name__ == "__main__":
    main()
