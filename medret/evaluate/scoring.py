"""Ranked lists as arrays of candidate numbers, and the metrics of every query, batch by batch.

Also measures how many of the true neighbours an approximate index finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.configs import SearchConfig
from medret.evaluate.metrics import METRICS, Averages, Bootstrap, average, chance, measure
from medret.evaluate.relevance import Exclusion, Level
from medret.index import MISSING
from medret.index.build import RECALL_K, TIE_TOLERANCE
from medret.search import Snapshot
from medret.search.options import SearchKeywords
from medret.search.query import QueryVectors


@dataclass(frozen=True)
class Ranking:
    """candidates: (q, depth) numbers of candidates, best first, MISSING past the end. scores: (q, depth) float32."""

    candidates: NDArray[np.int64]
    scores: NDArray[np.float32]


def rank(
    snapshot: Snapshot,
    config: SearchConfig,
    queries: Mapping[str, Sequence[QueryVectors]],
    depth: int,
    excluded: Sequence[AbstractSet[str]],
    number_of: dict[str, int],
) -> Ranking:
    """Search the `depth` best candidates for each query.

    queries: as the vectors of each model. number_of: volume_id -> number.
    """
    options: SearchKeywords = {"aggregation": config.aggregation, "index": config.index, "mode": config.mode}
    if len(queries) > 1:
        hits_of_queries = snapshot.rank_fused(queries, depth, excluded=excluded, **options)
    else:
        ((model, of_model),) = queries.items()
        options["model"] = model
        hits_of_queries = snapshot.rank(of_model, depth, excluded=excluded, **options)
    candidates = np.full((len(hits_of_queries), depth), MISSING, np.int64)
    scores = np.full((len(hits_of_queries), depth), -np.inf, np.float32)
    for row, hits in enumerate(hits_of_queries):
        candidates[row, : len(hits)] = [number_of[hit.volume_id] for hit in hits]
        scores[row, : len(hits)] = [hit.score for hit in hits]
    return Ranking(candidates, scores)


def judged_order(ranking: Ranking, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Remove the candidates that do not count and move the others up: (q, depth).

    kept: (q, n), whether a candidate counts for a query.
    """
    filled = ranking.candidates != MISSING
    counts = filled & np.take_along_axis(kept, np.where(filled, ranking.candidates, 0), axis=1)
    order = np.argsort(~counts, axis=1, kind="stable")
    moved: NDArray[np.int64] = np.take_along_axis(np.where(counts, ranking.candidates, MISSING), order, axis=1)
    return moved


def spliced(nearest: Ranking, further: Ranking) -> Ranking:
    """Rank the candidates of `nearest` first, then those of `further` that are not among them; as deep as `further`."""
    depth = further.candidates.shape[1]
    candidates = np.concatenate([nearest.candidates, further.candidates], axis=1)
    scores = np.concatenate([nearest.scores, further.scores], axis=1)
    again = (further.candidates[:, :, None] == nearest.candidates[:, None]).any(axis=2)
    unusable = np.concatenate([np.zeros(nearest.candidates.shape, bool), again], axis=1) | (candidates == MISSING)
    order = np.argsort(unusable, axis=1, kind="stable")[:, :depth]
    kept = ~np.take_along_axis(unusable, order, axis=1)
    return Ranking(
        np.where(kept, np.take_along_axis(candidates, order, axis=1), MISSING),
        np.where(kept, np.take_along_axis(scores, order, axis=1), -np.inf).astype(np.float32),
    )


def neighbours_found(ranking: Ranking, exact: Ranking) -> NDArray[np.float64]:
    """Share of each query's ten best by exact search that are among the ten best of `ranking`; NaN if there are none.

    A neighbour is true if its exact score is at least the tenth best, ties included.
    """
    shares = np.full(len(ranking.candidates), np.nan)
    for row in range(len(shares)):
        filled = exact.candidates[row] != MISSING
        count = min(RECALL_K, int(filled.sum()))
        if not count:
            continue
        scores = exact.scores[row][filled]
        true = exact.candidates[row][filled][scores >= scores[count - 1] - TIE_TOLERANCE]
        shares[row] = min(np.isin(ranking.candidates[row, :RECALL_K], true).sum() / count, 1.0)
    return shares


@dataclass(frozen=True)
class ScoredQueries:
    """The queries of a level under an exclusion: what each can find, and whether it is scored.

    total, candidates: (q,) relevant and labelled candidates that are not excluded. labelled: (q,) whether the query has
    a label. counted: (q,) whether it is scored.
    """

    level: Level
    total: NDArray[np.int64]
    candidates: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    def relevant(self, rows: NDArray[np.int64], kept: NDArray[np.bool_], ranking: Ranking) -> NDArray[np.bool_]:
        """The relevance of ranked hits: (len(rows), depth). kept: (len(rows), n), what the exclusion leaves."""
        order = judged_order(ranking, kept & self.level.candidates.any(axis=1))
        relevant: NDArray[np.bool_] = np.take_along_axis(self.level.relevance(rows), np.maximum(order, 0), axis=1)
        relevant &= order != MISSING
        return relevant


def scored_queries(level: Level, exclusion: Exclusion, min_relevant: int, batch: int) -> ScoredQueries:
    """Count what every query can find. Candidates without a label at the level are ignored."""
    labelled_candidates = level.candidates.any(axis=1)
    total, candidates = (np.zeros(len(level.queries), np.int64) for _ in range(2))
    for start in range(0, len(total), batch):
        rows = np.arange(start, min(start + batch, len(total)))
        kept = exclusion.kept(rows) & labelled_candidates
        candidates[rows] = kept.sum(axis=1)
        total[rows] = (kept & level.relevance(rows)).sum(axis=1)
    labelled = np.asarray(level.queries.any(axis=1))
    return ScoredQueries(level, total, candidates, labelled, labelled & (total >= min_relevant))


@dataclass
class Tally:
    """Metrics of one configuration per query, filled in batches. values: (q, metrics), NaN until measured."""

    queries: ScoredQueries
    values: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.full((len(self.queries.total), len(METRICS)), np.nan)

    def add(self, rows: NDArray[np.int64], kept: NDArray[np.bool_], ranking: Ranking) -> None:
        """Measure a batch of queries. rows: (b,) their numbers. kept: (b, n)."""
        counted = self.queries.counted[rows]
        part = Ranking(ranking.candidates[counted], ranking.scores[counted])
        relevant = self.queries.relevant(rows[counted], kept[counted], part)
        self.values[rows[counted]] = measure(relevant, np.maximum(self.queries.total[rows[counted]], 1))

    def averages(self, subjects: NDArray[np.int64], depth: int, bootstrap: Bootstrap) -> Averages:
        """Average over the queries that are scored. subjects: (q,) numbers. depth: the ranks of the lists."""
        counted = self.queries.counted
        chances = chance(self.queries.total[counted], self.queries.candidates[counted], depth)
        _, numbers = np.unique(subjects[counted], return_inverse=True)
        return average(self.values[counted], chances, self.queries.level.queries[counted], numbers, bootstrap)

    def of(self, queries: NDArray[np.bool_]) -> Tally:
        """The same, of some of the queries alone. queries: (q,)."""
        part = Tally(replace(self.queries, counted=self.queries.counted & queries))
        part.values = self.values
        return part


# --- halves of the sources -------------------------------------------------------------------------------------------

ALL, HALVES = "all", ("half 1", "half 2")  # of the queries: all of them, or those from one half of the sources


def halves(sources: Sequence[str | None]) -> dict[str, NDArray[np.bool_]]:
    """Which queries are meant by ALL and by HALVES: (queries,) bool each; ALL alone if there is one source, or none.

    The sources are divided by a hash of their names, so that a choice made on one half can be checked on the other.
    """
    found = {ALL: np.ones(len(sources), bool)}
    named = sorted({name for name in sources if name}, key=lambda name: sha256(name.encode()).digest())
    if len(named) > 1:
        half = {name: number % 2 for number, name in enumerate(named)}
        found |= {which: np.array([half.get(name or "") == at for name in sources]) for at, which in enumerate(HALVES)}
    return found


def chosen_by_half(rows: Sequence[Mapping[str, Any]], usual: str) -> list[str]:
    """What the best arm of one half of the sources, by mAP, gains over the usual one on the other half, in words."""
    values = {
        (row["exclude"], row["level"], row["queries"], row["arm"]): row["value"]
        for row in rows
        if row["metric"] == "mAP"
    }
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    notes = []
    for exclude, level in dict.fromkeys((row["exclude"], row["level"]) for row in rows):
        for one, other in (HALVES, HALVES[::-1]):
            here = {arm: values[exclude, level, one, arm] for arm in arms if (exclude, level, one, arm) in values}
            if not here or (exclude, level, other, usual) not in values:
                continue
            best = max(here, key=lambda arm: (here[arm], -arms.index(arm)))
            there = values[exclude, level, other, best], values[exclude, level, other, usual]
            notes.append(
                f"{level}, exclude {exclude}: best on {one} of the sources: {best} (mAP {here[best]:.3f}, {usual} "
                f"{here[usual]:.3f}); on {other} it has {there[0]:.3f}, {usual} {there[1]:.3f}"
            )
    return notes
