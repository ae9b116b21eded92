"""The figures of an evaluation, as JSON and CSV, and notes on where late interaction is worse than cheaper modes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.averages import MACRO, MICRO, Averages, Bootstrap
from medret.evaluate.configs import SearchConfig
from medret.evaluate.levels import Confound
from medret.evaluate.metrics import METRICS
from medret.evaluate.query_sets import QuerySet
from medret.index import EXACT
from medret.search.options import LATE, VOLUME, VOTE
from medret.visible import csv_text

ANN_RECALL = "ann_recall@10"
ALL = "all"  # level and class of a figure that does not depend on labels


@dataclass(frozen=True)
class Row:
    """One figure. low, high: its 95 % interval over subjects. chance: the same average of a random ranking.

    low and high are NaN if there is no interval: for a class of one subject, and a macro mean over such a class.
    n: queries averaged. subjects: the number of their subjects.
    """

    model: str
    aggregation: str
    index: str
    mode: str
    exclude: str
    level: str
    class_: str
    metric: str
    value: float
    low: float
    high: float
    chance: float
    n: int
    subjects: int
    default: bool

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object; null for an unknown bound."""
        return {name.rstrip("_"): None if value != value else value for name, value in asdict(self).items()}

    @property
    def has_interval(self) -> bool:
        """Whether low and high are known."""
        return not math.isnan(self.low)

    @property
    def config(self) -> tuple[str, str, str, str]:
        """The names of the row's configuration."""
        return self.model, self.aggregation, self.index, self.mode


def row_of(
    config: SearchConfig, exclude: str, level: str, class_: str, metric: str, means: Averages, at: int, number: int
) -> Row:
    """Take one figure from averages: row `at`, column `number`."""
    return Row(
        config.model,
        config.aggregation,
        config.index,
        config.mode,
        exclude,
        level,
        class_,
        metric,
        value=float(means.value[at, number]),
        low=float(means.low[at, number]),
        high=float(means.high[at, number]),
        chance=float(means.chance[at, number]),
        n=int(means.queries[at]),
        subjects=int(means.subjects[at]),
        default=config.default,
    )


@dataclass(frozen=True)
class LeftOut:
    """Counts of the queries that an exclusion leaves unscored at a level: too few relevant volumes, or no label."""

    exclude: str
    level: str
    counted: int
    classes: int
    too_few_relevant: int
    by_class: Mapping[str, int]
    unlabelled: int


@dataclass(frozen=True)
class Detail:
    """What the leading configuration found per query under one exclusion.

    hits, scores: (q, 10), numbers of candidates, -1 past the end. values: level -> (q, metrics), NaN if not scored.
    """

    hits: NDArray[np.int64]
    scores: NDArray[np.float32]
    values: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    store: str
    snapshot: str
    rows: Sequence[Row]
    configs: Sequence[SearchConfig]
    leading: SearchConfig
    levels: Sequence[str]
    excludes: Sequence[str]
    classes: Mapping[str, Mapping[str, int]]
    left_out: Sequence[LeftOut]
    warnings: Sequence[str]
    confounds: Sequence[Confound]
    depths: Mapping[str, int]
    min_relevant: int
    bootstrap: Bootstrap
    query_set: QuerySet
    details: Mapping[str, Detail] = field(default_factory=dict)
    seconds: float = 0.0

    def figure(self, config: SearchConfig, exclude: str, level: str, class_: str, metric: str) -> Row | None:
        """One row, or None if there is no such figure."""
        return self._by_key.get(
            (config.model, config.aggregation, config.index, config.mode, exclude, level, class_, metric)
        )

    @property
    def _by_key(self) -> dict[tuple[str, ...], Row]:
        index: dict[tuple[str, ...], Row] | None = self.__dict__.get("_index")
        if index is None:
            index = {(*row.config, row.exclude, row.level, row.class_, row.metric): row for row in self.rows}
            object.__setattr__(self, "_index", index)
        return index

    def classes_of(self, config: SearchConfig, exclude: str, level: str) -> list[str]:
        """The classes that have figures, sorted."""
        wanted = (config.model, config.aggregation, config.index, config.mode)
        found = {row.class_ for row in self.rows if (row.config, row.exclude, row.level) == (wanted, exclude, level)}
        return sorted(found - {MACRO, MICRO, ALL})

    def to_json(self) -> dict[str, Any]:
        """The evaluation as a JSON object."""
        return {
            "store": self.store,
            "snapshot": self.snapshot,
            "queries": self.query_set.queries.num_rows,
            "candidates": self.query_set.candidates.num_rows,
            "excludes": list(self.excludes),
            "levels": list(self.levels),
            "min_relevant": self.min_relevant,
            "metrics": [metric.name for metric in METRICS],
            "depths": dict(self.depths),
            "bootstrap": {**asdict(self.bootstrap), "over": "subjects", "interval": "percentile, 95 %"},
            "classes": {level: dict(counts) for level, counts in self.classes.items()},
            "left_out": [asdict(one) for one in self.left_out],
            "warnings": list(self.warnings),
            "confounds": [one.to_json() for one in self.confounds],
            "failed_queries": [asdict(one) for one in self.query_set.failures],
            "seconds": round(self.seconds, 3),
            "rows": [row.to_json() for row in self.rows],
        }

    def to_csv(self) -> str:
        """The rows as CSV text."""
        rows = [row.to_json() for row in self.rows]
        names = [one.name.rstrip("_") for one in fields(Row)]
        return csv_text(names, ([row[name] for name in names] for row in rows))


METRIC = "recall@1"


def late_notes(found: Evaluation) -> list[str]:
    """One sentence per model, level and exclusion at which another mode has a better macro recall@1 than late."""
    notes: list[str] = []
    for late in _late_arms(found):
        for exclude in found.excludes:
            for level in found.levels:
                notes += _compared(found, late, exclude, level)
    return notes


def _late_arms(found: Evaluation) -> Iterator[SearchConfig]:
    """One late-interaction configuration per model, preferring the exact index."""
    for model in dict.fromkeys(config.model for config in found.configs):
        late = [config for config in found.configs if (config.model, config.mode) == (model, LATE)]
        if late:
            yield min(late, key=lambda config: config.index != EXACT)


def _compared(found: Evaluation, late: SearchConfig, exclude: str, level: str) -> Iterator[str]:
    mine = found.figure(late, exclude, level, MACRO, METRIC)
    for mode in (VOLUME, VOTE):
        config = replace(late, mode=mode)
        theirs = found.figure(config, exclude, level, MACRO, METRIC)
        if mine is None or theirs is None or mine.value >= theirs.value - 1e-9:
            continue
        classes = [
            _difference(found, late, config, exclude, level, name) for name in found.classes_of(late, exclude, level)
        ]
        apart = "their intervals do not overlap" if mine.high < theirs.low else "their intervals overlap"
        if not (mine.has_interval and theirs.has_interval):
            apart = "without intervals: a class has one subject"
        yield (
            f"{late.model}, {level}, exclude {exclude}: late has macro {METRIC} {mine.value:.3f}, {mode} "
            f"{theirs.value:.3f} ({apart}); worse for {', '.join(filter(None, classes))}"
        )


def _difference(found: Evaluation, late: SearchConfig, other: SearchConfig, exclude: str, level: str, name: str) -> str:
    """Name a class for which late has fewer queries whose first hit is right; else empty."""
    mine, theirs = (found.figure(config, exclude, level, name, METRIC) for config in (late, other))
    if mine is None or theirs is None or mine.value >= theirs.value - 1e-9:
        return ""
    right = [round(row.value * row.n) for row in (mine, theirs)]
    return f"{name} ({right[0]} of {mine.n} queries right, {other.mode} {right[1]})"
