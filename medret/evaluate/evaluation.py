"""An evaluation: every arm ranks the candidates for every query under every exclusion, and is scored at every level."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.evaluate.averages import MACRO, MICRO, Averages, average
from medret.evaluate.configs import SearchConfig, arms_of, leading_arm
from medret.evaluate.figures import ALL, ANN_RECALL, Detail, Evaluation, LeftOut, Row, row_of
from medret.evaluate.levels import Options, exclude_names, find_confounds, level_names
from medret.evaluate.metrics import METRICS, RANKS_MIN
from medret.evaluate.query_sets import QuerySet
from medret.evaluate.relevance import Exclusion, class_counts, exclusion_of, level_of, subject_numbers
from medret.evaluate.scoring import RECALL_K, Ranking, Scope, Tally, neighbours_found, rank, scope_of, spliced
from medret.index import EXACT
from medret.search import Snapshot
from medret.search.options import LATE, VOLUME, SearchOptions

EXACT_DEPTH_MAX = 20_000  # archives up to this size are ranked in full by exact search
DEPTH = 1000  # ranks in larger ones, and by approximate search
BATCH_HITS = 1_000_000  # hits that are objects at the same time
BATCH_PAIRS = 20_000_000  # pairs of query and candidate that are judged at the same time
TIES_SEEN = 8  # beyond the tenth neighbour

Report = Callable[[str], None]


def evaluate(snapshot: Snapshot, panel: QuerySet, options: Options, report: Report = lambda _: None) -> Evaluation:
    """Score a snapshot. Raises UsageError for a column or arm that is not there, and when nothing can be scored."""
    started = time.perf_counter()
    if options.depth is not None and options.depth < RANKS_MIN:
        raise UsageError(
            f"depth is {options.depth}, expected at least {RANKS_MIN}: figures such as recall@{RANKS_MIN} are over so "
            "many ranks"
        )
    arms = arms_of(snapshot, options.selection)
    levels = [level_of(name, panel.queries, panel.candidates) for name in level_names(snapshot, panel, options)]
    warnings: list[str] = []
    confounds = find_confounds(panel, levels, options.sources)
    warnings += [found.message for found in confounds if found.warns]
    exclusions = [
        exclusion_of(name, panel.queries, panel.candidates, panel.own)
        for name in exclude_names(panel, options, confounds, warnings)
    ]
    batch = max(1, BATCH_PAIRS // max(panel.candidates.num_rows, 1))
    scopes = {
        exclusion.column: [scope_of(level, exclusion, options.min_relevant, batch) for level in levels]
        for exclusion in exclusions
    }
    left_out = [_left_out_of(exclude, scope) for exclude, own in scopes.items() for scope in own]
    if not any(one.counted for one in left_out):
        raise UsageError(
            f"{snapshot.uri}: no query has {options.min_relevant} relevant volumes left by "
            f"{', '.join(scopes)}; try a smaller --min-relevant or another --exclude"
        )
    warnings += [
        f"{one.level}, exclude {one.exclude}: no query has {options.min_relevant} relevant volumes left, so no figures"
        for one in left_out
        if not one.counted
    ]
    work = _Work(snapshot, panel, options, exclusions, scopes, leading_arm(arms), report)
    rows = work.run(arms)
    return Evaluation(
        store=snapshot.uri,
        snapshot=snapshot.id,
        rows=rows,
        arms=arms,
        leading=work.leading,
        levels=[level.name for level in levels],
        excludes=list(scopes),
        classes={level.name: class_counts(panel.candidates, level.name) for level in levels},
        left_out=left_out,
        warnings=warnings,
        confounds=confounds,
        depths={index: work.depth(index) for index in dict.fromkeys(arm.index for arm in arms)},
        min_relevant=options.min_relevant,
        bootstrap=options.bootstrap,
        panel=panel,
        details=work.details,
        seconds=time.perf_counter() - started,
    )


def _left_out_of(exclude: str, scope: Scope) -> LeftOut:
    """Which queries a scope leaves out."""
    few = scope.labelled & ~scope.counted
    by_class = zip(scope.level.classes, scope.level.queries[few].sum(axis=0).tolist(), strict=True)
    return LeftOut(
        exclude=exclude,
        level=scope.level.name,
        counted=int(scope.counted.sum()),
        classes=int(scope.level.queries[scope.counted].any(axis=0).sum()),
        too_few_relevant=int(few.sum()),
        by_class={name: count for name, count in by_class if count},
        unlabelled=int((~scope.labelled).sum()),
    )


class _Work:
    """The loop over arms, exclusions and batches of queries."""

    def __init__(
        self,
        snapshot: Snapshot,
        panel: QuerySet,
        options: Options,
        exclusions: Sequence[Exclusion],
        scopes: dict[str, list[Scope]],
        leading: SearchConfig,
        report: Report,
    ) -> None:
        self._snapshot, self._panel, self._options = snapshot, panel, options
        self._exclusions, self._scopes, self._report = exclusions, scopes, report
        self._ids: list[str] = panel.candidates["volume_id"].to_pylist()
        self._number_of = {volume_id: number for number, volume_id in enumerate(self._ids)}
        self._subjects = subject_numbers(panel.queries)
        self.leading = leading
        self.details: dict[str, Detail] = {}

    def depth(self, index: str) -> int:
        """How many ranks the lists of an index have."""
        there = len(self._ids)
        usual = EXACT_DEPTH_MAX if index == EXACT and there <= EXACT_DEPTH_MAX else DEPTH
        return min(there, self._options.depth or usual)

    def run(self, arms: Sequence[SearchConfig]) -> list[Row]:
        """The rows of all arms, in their order. Arms that differ in nothing that plays a part are run once."""
        first = arms[0].aggregation
        same = {arm: replace(arm, aggregation=first, default=False) if arm.by_slices else arm for arm in arms}
        distinct = sorted(
            {replace(arm, default=False): arm for arm in same.values()}.values(),
            key=lambda arm: (arm.model, arm.aggregation, arm.mode),
        )
        groups = [list(group) for _, group in groupby(distinct, key=lambda arm: (arm.model, arm.aggregation, arm.mode))]
        rows: dict[SearchConfig, list[Row]] = {}
        model = ""
        for number, group in enumerate(groups, start=1):
            if group[0].model != model:
                self._panel.forget()
                model = group[0].model
            for exclusion in self._exclusions:
                words = f"{group[0].label}, {'/'.join(arm.index for arm in group)}, exclude {exclusion.column}"
                self._report(f"{number}/{len(groups)} {words}")
                for arm, found in self._score(group, exclusion).items():
                    rows.setdefault(replace(arm, default=False), []).extend(found)
        self._panel.forget()
        return [
            replace(row, aggregation=arm.aggregation, default=arm.default)
            for arm in arms
            for row in rows[replace(same[arm], default=False)]
        ]

    def _score(self, group: Sequence[SearchConfig], exclusion: Exclusion) -> dict[SearchConfig, list[Row]]:
        """Arms that differ in the index alone, so that each is compared with exact search."""
        scopes = self._scopes[exclusion.column]
        tallies = {arm: [Tally(scope) for scope in scopes] for arm in group}
        shares = {arm: np.full(len(self._subjects), np.nan) for arm in group if arm.index != EXACT}
        tops: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        exact_arm = replace(group[0], index=EXACT)
        exact_first = sorted(group, key=lambda arm: arm.index != EXACT)
        for rows in self._batches(max(self.depth(arm.index) for arm in group)):
            kept = exclusion.kept(rows)
            exact: Ranking | None = None
            for arm in exact_first:
                ranking = self._rank(arm, rows, kept, self.depth(arm.index))
                if arm.index == EXACT:
                    exact = ranking
                else:
                    exact = exact or self._rank(exact_arm, rows, kept, RECALL_K + TIES_SEEN)
                    if _looks_further(arm, self.depth(arm.index)):
                        ranking = spliced(self._rank(arm, rows, kept, RECALL_K), ranking)
                    shares[arm][rows] = neighbours_found(ranking, exact)
                for tally in tallies[arm]:
                    tally.add(rows, kept, ranking)
                if self._leads(arm):
                    tops.append((_top(ranking.candidates, -1), _top(ranking.scores, -np.inf)))
        if tops:
            hits, scores = (np.concatenate(parts) for parts in zip(*tops, strict=True))
            arm = next(arm for arm in group if self._leads(arm))
            values = {tally.scope.level.name: tally.values for tally in tallies[arm]}
            self.details[exclusion.column] = Detail(hits, scores, values)
        return {arm: self._rows(arm, exclusion, tallies[arm], shares.get(arm)) for arm in group}

    def _leads(self, arm: SearchConfig) -> bool:
        own, other = (replace(one, default=False) for one in (arm, self.leading))
        return own == (replace(other, aggregation=own.aggregation) if own.by_slices else other)

    def _batches(self, depth: int) -> Iterator[NDArray[np.int64]]:
        step = max(1, min(BATCH_HITS // depth, BATCH_PAIRS // len(self._ids)))
        for start in range(0, len(self._subjects), step):
            yield np.arange(start, min(start + step, len(self._subjects)))

    def _rank(self, arm: SearchConfig, rows: NDArray[np.int64], kept: NDArray[np.bool_], depth: int) -> Ranking:
        queries = self._panel.vectors(rows, arm.model, arm.aggregation)
        shared: dict[bytes, frozenset[str]] = {}  # queries of one source leave out the same volumes
        excluded = []
        for own in kept:
            key = own.tobytes()
            if key not in shared:
                shared[key] = self._panel.hidden.union(self._ids[number] for number in np.flatnonzero(~own))
            excluded.append(shared[key])
        return rank(self._snapshot, arm, queries, depth, excluded, self._number_of)

    def _rows(
        self, arm: SearchConfig, exclusion: Exclusion, tallies: Sequence[Tally], shares: NDArray[np.float64] | None
    ) -> list[Row]:
        rows = []
        for tally in tallies:
            if not tally.scope.counted.any():
                continue
            means = tally.averages(self._subjects, self.depth(arm.index), self._options.bootstrap)
            level = tally.scope.level
            rows += [
                row_of(arm, exclusion.column, level.name, name, metric.name, means, at, number)
                for at, name in enumerate((MACRO, MICRO, *level.classes))
                if means.queries[at]
                for number, metric in enumerate(METRICS)
            ]
        if shares is not None and not np.isnan(shares).all():
            rows.append(row_of(arm, exclusion.column, ALL, ALL, ANN_RECALL, self._recall(exclusion, shares), 1, 0))
        return rows

    def _recall(self, exclusion: Exclusion, shares: NDArray[np.float64]) -> Averages:
        """Averages of the neighbours that an index found, of all queries that have neighbours."""
        counted = np.flatnonzero(~np.isnan(shares))
        left = np.concatenate([exclusion.kept(np.array([row])).sum(axis=1) for row in counted])
        chances = np.minimum(RECALL_K / left, 1.0)[:, None]
        _, numbers = np.unique(self._subjects[counted], return_inverse=True)
        everyone = np.ones((len(counted), 0), bool)
        return average(shares[counted, None], chances, everyone, numbers, self._options.bootstrap)


def _looks_further(arm: SearchConfig, depth: int) -> bool:
    """Whether an index that is asked for `depth` hits finds others among the first ten than if it is asked for ten.

    Then the first ten of a list are taken from a search for ten, as users make it.
    """
    return arm.mode == VOLUME or (arm.mode == LATE and depth > SearchOptions().candidates)


def _top(ranked: NDArray[Any], fill: float) -> NDArray[Any]:
    """The first ten columns, filled up where there are fewer."""
    first = ranked[:, :RECALL_K]
    return np.pad(first, ((0, 0), (0, RECALL_K - first.shape[1])), constant_values=fill)
