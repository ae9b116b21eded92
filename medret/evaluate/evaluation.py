"""An evaluation: every search configuration ranks the candidates for every query and is scored at every level."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.configs import SearchConfig, configs_of, leading_config
from medret.evaluate.figures import ALL, ANN_RECALL, Detail, Evaluation, LeftOut, Row
from medret.evaluate.levels import SOURCE, Options, ScoringPlan, scoring_plan
from medret.evaluate.metrics import MACRO, METRICS, MICRO, NAMES, Averages, Bootstrap, average, check_depth
from medret.evaluate.query_sets import QuerySet, Report
from medret.evaluate.relevance import Exclusion, class_counts, subject_numbers, text_column
from medret.evaluate.scoring import ALL as ALL_QUERIES
from medret.evaluate.scoring import Ranking, ScoredQueries, Tally, halves, neighbours_found, rank, spliced
from medret.index import EXACT
from medret.index.build import RECALL_K
from medret.search import Snapshot
from medret.search.options import LATE, VOLUME, SearchOptions

EXACT_DEPTH_MAX = 20_000  # volumes; exact search ranks archives up to this size completely
DEPTH = 1000  # ranks per list of larger archives and of approximate indices
BATCH_HITS = 1_000_000  # hits that exist as objects at the same time
BATCH_PAIRS = 20_000_000  # pairs of query and candidate that are judged at the same time
TIES_SEEN = 8  # beyond the tenth neighbour


def evaluate(snapshot: Snapshot, query_set: QuerySet, options: Options, report: Report = lambda _: None) -> Evaluation:
    """Score a snapshot. Raises UsageError for an unknown column or configuration, and if nothing can be scored."""
    started = time.perf_counter()
    check_depth(options.depth)
    configs = configs_of(snapshot, options.selection)
    plan = scoring_plan(snapshot, query_set, options, BATCH_PAIRS)
    left_out = [_left_out_of(exclude, queries) for exclude, at_levels in plan.queries.items() for queries in at_levels]
    warnings = [confounded.message for confounded in plan.confounds if confounded.warns]
    warnings += plan.warnings
    warnings += [
        f"{at_level.level}, exclude {at_level.exclude}: no query has {options.min_relevant} relevant volumes left, "
        "so no figures"
        for at_level in left_out
        if not at_level.counted
    ]
    work = _Work(snapshot, query_set, options, plan, leading_config(configs), report)
    rows = work.run(configs)
    return Evaluation(
        store=snapshot.uri,
        snapshot=snapshot.id,
        rows=rows,
        configs=configs,
        leading=work.leading,
        levels=plan.levels,
        excludes=list(plan.queries),
        classes={name: class_counts(query_set.candidates, name) for name in plan.levels},
        left_out=left_out,
        warnings=warnings,
        confounds=plan.confounds,
        depths={index: work.depth(index) for index in dict.fromkeys(config.index for config in configs)},
        min_relevant=options.min_relevant,
        bootstrap=options.bootstrap,
        query_set=query_set,
        by_half=work.by_half,
        details=work.details,
        seconds=time.perf_counter() - started,
    )


def _left_out_of(exclude: str, queries: ScoredQueries) -> LeftOut:
    """Count the queries of a level that are not scored."""
    few = queries.labelled & ~queries.counted
    by_class = zip(queries.level.classes, queries.level.queries[few].sum(axis=0).tolist(), strict=True)
    return LeftOut(
        exclude=exclude,
        level=queries.level.name,
        counted=int(queries.counted.sum()),
        classes=int(queries.level.queries[queries.counted].any(axis=0).sum()),
        too_few_relevant=int(few.sum()),
        by_class={name: count for name, count in by_class if count},
        unlabelled=int((~queries.labelled).sum()),
    )


@dataclass
class _Work:
    """The loop over configurations, exclusions and batches of queries."""

    snapshot: Snapshot
    query_set: QuerySet
    options: Options
    plan: ScoringPlan
    leading: SearchConfig
    report: Report
    details: dict[str, Detail] = field(default_factory=dict)
    by_half: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids: list[str] = self.query_set.candidates["volume_id"].to_pylist()
        self._number_of = {volume_id: number for number, volume_id in enumerate(self._ids)}
        self._subjects = subject_numbers(self.query_set.queries)
        self._halves = halves(text_column(self.query_set.queries, SOURCE))

    def depth(self, index: str) -> int:
        """The number of ranks per list of an index."""
        volumes = len(self._ids)
        usual = EXACT_DEPTH_MAX if index == EXACT and volumes <= EXACT_DEPTH_MAX else DEPTH
        return min(volumes, self.options.depth or usual)

    def run(self, configs: Sequence[SearchConfig]) -> list[Row]:
        """The rows of all configurations, in their order. Those that differ in nothing that matters are run once."""
        first = configs[0].aggregation
        same = {config: replace(config, aggregation=first) if config.by_slices else config for config in configs}
        distinct = sorted(dict.fromkeys(same.values()), key=_but_index)
        groups = [list(group) for _, group in groupby(distinct, key=_but_index)]
        rows: dict[SearchConfig, list[Row]] = defaultdict(list)
        model = ""
        for number, group in enumerate(groups, start=1):
            if group[0].model != model:
                self.query_set.forget()
                model = group[0].model
            for exclusion in self.plan.exclusions:
                words = f"{group[0].label}, {'/'.join(config.index for config in group)}, exclude {exclusion.column}"
                self.report(f"{number}/{len(groups)} {words}")
                for config, scored in self._score(group, exclusion).items():
                    rows[config] += scored
        self.query_set.forget()
        return [replace(row, config=config) for config in configs for row in rows[same[config]]]

    def _score(self, group: Sequence[SearchConfig], exclusion: Exclusion) -> dict[SearchConfig, list[Row]]:
        """Score configurations that differ only in the index: each is also compared with exact search."""
        tallies = {config: [Tally(queries) for queries in self.plan.queries[exclusion.column]] for config in group}
        shares = {config: np.full(len(self._subjects), np.nan) for config in group if config.index != EXACT}
        tops: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        exact_arm = replace(group[0], index=EXACT)
        exact_first = sorted(group, key=lambda config: config.index != EXACT)
        for rows in self._batches(max(self.depth(config.index) for config in group)):
            kept = exclusion.kept(rows)
            exact: Ranking | None = None
            for config in exact_first:
                ranking = self._rank(config, rows, kept, self.depth(config.index))
                if config.index == EXACT:
                    exact = ranking
                else:
                    exact = exact or self._rank(exact_arm, rows, kept, RECALL_K + TIES_SEEN)
                    if _looks_further(config, self.depth(config.index)):
                        ranking = spliced(self._rank(config, rows, kept, RECALL_K), ranking)
                    shares[config][rows] = neighbours_found(ranking, exact)
                for tally in tallies[config]:
                    tally.add(rows, kept, ranking)
                if self._leads(config):
                    tops.append((_top(ranking.candidates, -1), _top(ranking.scores, -np.inf)))
        if tops:
            hits, scores = (np.concatenate(parts) for parts in zip(*tops, strict=True))
            config = next(config for config in group if self._leads(config))
            values = {tally.queries.level.name: tally.values for tally in tallies[config]}
            self.details[exclusion.column] = Detail(hits, scores, values)
        return {config: self._rows(config, exclusion, tallies[config], shares.get(config)) for config in group}

    def _leads(self, config: SearchConfig) -> bool:
        return config == (replace(self.leading, aggregation=config.aggregation) if config.by_slices else self.leading)

    def _batches(self, depth: int) -> Iterator[NDArray[np.int64]]:
        step = max(1, min(BATCH_HITS // depth, BATCH_PAIRS // len(self._ids)))
        for start in range(0, len(self._subjects), step):
            yield np.arange(start, min(start + step, len(self._subjects)))

    def _rank(self, config: SearchConfig, rows: NDArray[np.int64], kept: NDArray[np.bool_], depth: int) -> Ranking:
        queries = {name: self.query_set.vectors(rows, name, config.aggregation) for name in config.models}
        shared: dict[bytes, frozenset[str]] = {}  # queries of one source exclude the same volumes
        excluded = []
        for candidates in kept:
            key = candidates.tobytes()
            if key not in shared:
                shared[key] = self.query_set.excluded.union(self._ids[number] for number in np.flatnonzero(~candidates))
            excluded.append(shared[key])
        return rank(self.snapshot, config, queries, depth, excluded, self._number_of)

    def _rows(
        self, config: SearchConfig, exclusion: Exclusion, tallies: Sequence[Tally], shares: NDArray[np.float64] | None
    ) -> list[Row]:
        rows = []
        key: dict[str, Any] = {"config": config, "exclude": exclusion.column}
        for tally in tallies:
            if not tally.queries.counted.any():
                continue
            means = tally.averages(self._subjects, self.depth(config.index), self.options.bootstrap)
            level = tally.queries.level
            self.by_half += self._by_half(config, exclusion.column, tally)
            rows += [
                Row(**vars(means.figure(at, number)), **key, level=level.name, class_=name, metric=metric.name)
                for at, name in enumerate((MACRO, MICRO, *level.classes))
                if means.queries[at]
                for number, metric in enumerate(METRICS)
            ]
        if shares is not None and not np.isnan(shares).all():
            recall = self._recall(exclusion, shares).figure(1, 0)
            rows.append(Row(**vars(recall), **key, level=ALL, class_=ALL, metric=ANN_RECALL))
        return rows

    def _by_half(self, config: SearchConfig, exclude: str, tally: Tally) -> Iterator[dict[str, Any]]:
        """The macro mAP of the queries from each half of the sources."""
        for which, own in self._halves.items():
            part = tally.of(own)
            if which != ALL_QUERIES and part.queries.counted.any():
                means = part.averages(self._subjects, self.depth(config.index), Bootstrap(1))
                value = means.figure(0, NAMES.index("mAP")).value
                names = {"arm": config.label, "index": config.index, "exclude": exclude}
                yield {**names, "level": tally.queries.level.name, "queries": which, "metric": "mAP", "value": value}

    def _recall(self, exclusion: Exclusion, shares: NDArray[np.float64]) -> Averages:
        """Average the share of true neighbours over all queries that have any."""
        counted = np.flatnonzero(~np.isnan(shares))
        left = np.concatenate([exclusion.kept(np.array([row])).sum(axis=1) for row in counted])
        chances = np.minimum(RECALL_K / left, 1.0)[:, None]
        _, numbers = np.unique(self._subjects[counted], return_inverse=True)
        everyone = np.ones((len(counted), 0), bool)
        return average(shares[counted, None], chances, everyone, numbers, self.options.bootstrap)


def _but_index(config: SearchConfig) -> tuple[str, str, str]:
    return config.model, config.aggregation, config.mode


def _looks_further(config: SearchConfig, depth: int) -> bool:
    """Whether a search for `depth` hits may return other first ten hits than a search for ten.

    Then the first ten of a list are taken from a search for ten, which is what users do.
    """
    return config.mode == VOLUME or (config.mode == LATE and depth > SearchOptions().candidates)


def _top(ranked: NDArray[Any], fill: float) -> NDArray[Any]:
    """The first ten columns, padded if there are fewer."""
    first = ranked[:, :RECALL_K]
    return np.pad(first, ((0, 0), (0, RECALL_K - first.shape[1])), constant_values=fill)
