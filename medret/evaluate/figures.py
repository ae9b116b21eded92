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
        searched = (config.model, config.aggregation, config.index, config.mode)
        classes = {
            row.class_ for row in self.rows if (row.config, row.exclude, row.level) == (searched, exclude, level)
        }
        return sorted(classes - {MACRO, MICRO, ALL})

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
            "left_out": [asdict(at_level) for at_level in self.left_out],
            "warnings": list(self.warnings),
            "confounds": [confound.to_json() for confound in self.confounds],
            "failed_queries": [asdict(failure) for failure in self.query_set.failures],
            "seconds": round(self.seconds, 3),
            "rows": [row.to_json() for row in self.rows],
        }

    def to_csv(self) -> str:
        """The rows as CSV text."""
        rows = [row.to_json() for row in self.rows]
        names = [field.name.rstrip("_") for field in fields(Row)]
        return csv_text(names, ([row[name] for name in names] for row in rows))


METRIC = "recall@1"


def late_notes(evaluation: Evaluation) -> list[str]:
    """One sentence per model, level and exclusion at which another mode has a better macro recall@1 than late."""
    notes: list[str] = []
    for late in _late_configs(evaluation):
        for exclude in evaluation.excludes:
            for level in evaluation.levels:
                notes += _compared(evaluation, late, exclude, level)
    return notes


def _late_configs(evaluation: Evaluation) -> Iterator[SearchConfig]:
    """One late-interaction configuration per model, preferring the exact index."""
    for model in dict.fromkeys(config.model for config in evaluation.configs):
        late = [config for config in evaluation.configs if (config.model, config.mode) == (model, LATE)]
        if late:
            yield min(late, key=lambda config: config.index != EXACT)


def _compared(evaluation: Evaluation, late: SearchConfig, exclude: str, level: str) -> Iterator[str]:
    late_figure = evaluation.figure(late, exclude, level, MACRO, METRIC)
    for mode in (VOLUME, VOTE):
        config = replace(late, mode=mode)
        other_figure = evaluation.figure(config, exclude, level, MACRO, METRIC)
        if late_figure is None or other_figure is None or late_figure.value >= other_figure.value - 1e-9:
            continue
        classes = [
            _difference(evaluation, late, config, exclude, level, name)
            for name in evaluation.classes_of(late, exclude, level)
        ]
        apart = "their intervals do not overlap" if late_figure.high < other_figure.low else "their intervals overlap"
        if not (late_figure.has_interval and other_figure.has_interval):
            apart = "without intervals: a class has one subject"
        yield (
            f"{late.model}, {level}, exclude {exclude}: late has macro {METRIC} {late_figure.value:.3f}, {mode} "
            f"{other_figure.value:.3f} ({apart}); worse for {', '.join(filter(None, classes))}"
        )


def _difference(
    evaluation: Evaluation, late: SearchConfig, other: SearchConfig, exclude: str, level: str, name: str
) -> str:
    """Name a class for which late has fewer queries whose first hit is right; else empty."""
    late_figure, other_figure = (evaluation.figure(config, exclude, level, name, METRIC) for config in (late, other))
    if late_figure is None or other_figure is None or late_figure.value >= other_figure.value - 1e-9:
        return ""
    right = [round(row.value * row.n) for row in (late_figure, other_figure)]
    return f"{name} ({right[0]} of {late_figure.n} queries right, {other.mode} {right[1]})"
