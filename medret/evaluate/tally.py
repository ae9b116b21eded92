"""One exclusion and one level: which queries count, and the metrics of every query as batches of rankings come in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.averages import Averages, Bootstrap, average
from medret.evaluate.metrics import METRICS, JudgedRanking, chance, measure
from medret.evaluate.ranking import MISSING, Ranking, judged_order
from medret.evaluate.relevance import Exclusion, Level


@dataclass(frozen=True)
class Scope:
    """What there is to find for each query at a level under an exclusion.

    total: (q,) relevant candidates left. candidates: (q,) labelled candidates left. labelled: (q,) whether the query
    has a label. counted: (q,) whether it is scored.
    """

    level: Level
    total: NDArray[np.int64]
    candidates: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    def judge(self, rows: NDArray[np.int64], kept: NDArray[np.bool_], ranking: Ranking) -> JudgedRanking:
        """The relevance of ranked lists. kept: (len(rows), n), as the exclusion gives it."""
        order = judged_order(ranking, kept & self.level.candidates.any(axis=1))
        relevant = np.take_along_axis(self.level.relevance(rows), np.maximum(order, 0), axis=1) & (order != MISSING)
        return JudgedRanking(relevant, np.maximum(self.total[rows], 1), np.maximum(self.candidates[rows], 1))


def scope_of(level: Level, exclusion: Exclusion, min_relevant: int, batch: int) -> Scope:
    """Count what is left to find for every query. Candidates without a label at the level are not judged."""
    labelled_candidates = level.candidates.any(axis=1)
    total, candidates = (np.zeros(len(level.queries), np.int64) for _ in range(2))
    for start in range(0, len(total), batch):
        rows = np.arange(start, min(start + batch, len(total)))
        kept = exclusion.kept(rows) & labelled_candidates
        candidates[rows] = kept.sum(axis=1)
        total[rows] = (kept & level.relevance(rows)).sum(axis=1)
    labelled = np.asarray(level.queries.any(axis=1))
    return Scope(level, total, candidates, labelled, labelled & (total >= min_relevant))


@dataclass
class Tally:
    """Metrics of one arm, query by query; filled in batches. values: (q, metrics), NaN where not yet measured."""

    scope: Scope
    values: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.full((len(self.scope.total), len(METRICS)), np.nan)

    def add(self, rows: NDArray[np.int64], kept: NDArray[np.bool_], ranking: Ranking) -> None:
        """Measure a batch. rows: (b,) numbers of the queries. kept: (b, n)."""
        counted = self.scope.counted[rows]
        part = Ranking(ranking.candidates[counted], ranking.scores[counted])
        self.values[rows[counted]] = measure(self.scope.judge(rows[counted], kept[counted], part))

    def averages(self, subjects: NDArray[np.int64], depth: int, bootstrap: Bootstrap) -> Averages:
        """Averages over the queries that count. subjects: (q,) numbers. depth: ranks that the lists could have."""
        counted = self.scope.counted
        chances = chance(self.scope.total[counted], self.scope.candidates[counted], depth)
        _, numbers = np.unique(subjects[counted], return_inverse=True)
        return average(self.values[counted], chances, self.scope.level.queries[counted], numbers, bootstrap)
