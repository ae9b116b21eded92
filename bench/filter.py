"""Filtered search: scanning the kept rows against walking the index, at several selectivities.

    python bench/filter.py [--rows N] [--dim N] [--json]

The vectors are synthetic: clusters of random directions. The filter keeps rows at random. The figures say how far what
medret chooses (medret.index.approximate) is from the better of both; the JSON has the times at every selectivity.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace

import faiss
import numpy as np
from figures import Figure, Measured, main
from numpy.typing import NDArray
from synthetic import clustered, near

from medret.index import Distinct, ExactIndex, IndexSettings
from medret.index.approximate import ApproximateIndex, first_equal
from medret.index.exact import MISSING, Neighbours, Searchable, build_exact
from medret.index.hnsw import HnswIndex, build_hnsw
from medret.index.lsh import LshIndex, build_lsh
from medret.index.settings import FP16, RABITQ

SELECTIVITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01, 0.003, 0.001)
K = 10


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


def measured(arguments: argparse.Namespace) -> Measured:
    """What medret chooses against the better of scan and walk, at every selectivity."""
    rows, dim, count = (2000, 64, 10) if arguments.tiny else (arguments.rows, arguments.dim, arguments.queries)
    faiss.omp_set_num_threads(1)
    vectors = clustered(rows, dim)
    queries = near(vectors, count)
    settings, exact = IndexSettings(), ExactIndex(build_exact(vectors))
    distinct = Distinct(first_equal(vectors))
    indices: dict[str, ApproximateIndex] = {
        **{
            f"HNSW, {codes}": HnswIndex(
                build_hnsw(vectors, replace(settings, hnsw_codes=codes)), exact, distinct, settings.hnsw_ef_search
            )
            for codes in (FP16, RABITQ)
        },
        "LSH": LshIndex(build_lsh(vectors, settings), exact, distinct, settings.lsh_candidates),
    }
    figures, facts = [], {}
    for name, index in indices.items():
        points = [selected(index, exact, queries, share) for share in SELECTIVITIES]
        worst = max(points, key=lambda point: point.chosen_ms / min(point.scan_ms, point.walk_ms))
        against = f"scanning what is kept or walking the index, whichever is faster; synthetic, {rows:,} x {dim}"
        ratio = worst.chosen_ms / min(worst.scan_ms, worst.walk_ms)
        least = min(point.recall for point in points)
        figures += [
            Figure(f"filtered {name}, worst at {worst.kept:.1%} kept", ratio, None, against, at_least=False),
            Figure(f"filtered {name}, lowest recall@10", least, None, f"exact search; synthetic, {rows:,} x {dim}"),
        ]
        facts[name] = {"unfiltered_ms": milliseconds(index, queries), "points": [asdict(point) for point in points]}
    return Measured(figures, {"rows": rows, "dim": dim, **facts})


@dataclass(frozen=True)
class Point:
    """One filter. kept: share of the rows. Milliseconds a query; recall: of what medret chooses."""

    kept: float
    scan_ms: float
    walk_ms: float
    chosen_ms: float
    recall: float


def selected(index: ApproximateIndex, exact: ExactIndex, queries: NDArray[np.float32], share: float) -> Point:
    """A filter that keeps that share of the rows, at random."""
    kept = np.random.default_rng(1).permutation(exact.rows)[: max(K, round(share * exact.rows))]
    excluded = np.setdiff1d(np.arange(exact.rows), kept)
    scan = milliseconds(exact, queries, excluded)
    costs = index.cost_asked, index.cost_held
    index.cost_asked = index.cost_held = 0.0
    walk = milliseconds(index, queries, excluded)
    index.cost_asked, index.cost_held = costs
    chosen = milliseconds(index, queries, excluded)
    reached = recall(index.search(queries, K, excluded), exact.search(queries, K, excluded))
    return Point(share, scan, walk, chosen, reached)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="(default %(default)s)")
    parser.add_argument("--dim", type=int, default=768, help="(default %(default)s)")
    parser.add_argument("--queries", type=int, default=50, help="(default %(default)s)")
    main(measured, parser)
