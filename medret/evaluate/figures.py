"""The figures of an evaluation, as JSON and CSV, and notes on where late interaction is worse than cheaper modes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.configs import SearchConfig
from medret.evaluate.levels import Confound
from medret.evaluate.metrics import MACRO, METRICS, MICRO, Bootstrap, Figure
from medret.evaluate.query_sets import QuerySet
from medret.evaluate.scoring import chosen_by_half
from medret.index import EXACT
from medret.search.options import LATE, VOLUME, VOTE
from medret.visible import csv_text

ANN_RECALL = "ann_recall@10"
ALL = "all"  # level and class of a figure that does not depend on labels


@dataclass(frozen=True)
class Row(Figure):
    """One figure of an evaluation: of a search configuration, under an exclusion, for a class of a level."""

    config: SearchConfig
    exclude: str
    level: str
    class_: str
    metric: str

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object; null for an unknown bound."""
        config = asdict(self.config)
        is_default = config.pop("default")
        names = {"exclude": self.exclude, "level": self.level, "class": self.class_, "metric": self.metric}
        means = {field.name: getattr(self, field.name) for field in fields(Figure)}
        known = {name: None if math.isnan(mean) else mean for name, mean in means.items()}
        return {**config, **names, **known, "default": is_default}


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
    """A finished evaluation. by_half: the macro mAP of every configuration for each half of the sources."""

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
    by_half: Sequence[Mapping[str, Any]] = ()
    details: Mapping[str, Detail] = field(default_factory=dict)
    seconds: float = 0.0

    def figure(self, config: SearchConfig, exclude: str, level: str, class_: str, metric: str) -> Row | None:
        """One row, or None if there is no such figure."""
        return self._by_key.get((config, exclude, level, class_, metric))

    @cached_property
    def _by_key(self) -> dict[tuple[SearchConfig, str, str, str, str], Row]:
        return {(row.config, row.exclude, row.level, row.class_, row.metric): row for row in self.rows}

    @property
    def places(self) -> list[tuple[str, str]]:
        """The (exclude, level) pairs that have figures."""
        pairs = [(exclude, level) for level in self.levels for exclude in self.excludes]
        return [pair for pair in pairs if self.figure(self.leading, *pair, MACRO, "mAP")]

    @property
    def distinct_configs(self) -> list[SearchConfig]:
        """The configurations, each once: the aggregation plays no part where slices are searched."""
        first = self.configs[0].aggregation
        return [config for config in self.configs if not config.by_slices or config.aggregation == first]

    def figures(self, config: SearchConfig, exclude: str, level: str, class_: str, metrics: Sequence[str]) -> list[Row]:
        """The rows of several metrics, without those that have no figure."""
        rows = (self.figure(config, exclude, level, class_, metric) for metric in metrics)
        return [row for row in rows if row]

    def classes_of(self, config: SearchConfig, exclude: str, level: str) -> list[str]:
        """The classes that have figures, sorted."""
        classes = {row.class_ for row in self.rows if (row.config, row.exclude, row.level) == (config, exclude, level)}
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
            "by_half": [dict(row) for row in self.by_half],
            "seconds": round(self.seconds, 3),
            "rows": [row.to_json() for row in self.rows],
        }

    def to_csv(self) -> str:
        """The rows as CSV text."""
        rows = [row.to_json() for row in self.rows]
        return csv_text(list(rows[0]), (row.values() for row in rows))


METRIC = "recall@1"


def notes_of(evaluation: Evaluation) -> list[str]:
    """What readers need to know: where late interaction is worse, and what the best search of a half is worth."""
    usual = evaluation.leading
    if exact := [config for config in evaluation.configs if config == replace(usual, index=EXACT)]:
        usual = exact[0]
    comparable = [row for row in evaluation.by_half if row["index"] == usual.index]
    return [*late_notes(evaluation), *chosen_by_half(comparable, usual.label)]


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
    for mode in (VOLUME, VOTE):
        of_class: dict[str, tuple[Row, Row]] = {}  # the figures of late and of the better mode
        for class_ in (MACRO, *evaluation.classes_of(late, exclude, level)):
            rows = [
                evaluation.figure(config, exclude, level, class_, METRIC) for config in (late, replace(late, mode=mode))
            ]
            if rows[0] and rows[1] and rows[0].value < rows[1].value - 1e-9:
                of_class[class_] = rows[0], rows[1]
        if MACRO not in of_class:
            continue
        ours, other = of_class.pop(MACRO)
        apart = "their intervals do not overlap" if ours.high < other.low else "their intervals overlap"
        if not (ours.has_interval and other.has_interval):
            apart = "without intervals: a class has one subject"
        classes = (
            f"{name} ({round(row.value * row.n)} of {row.n} queries right, {mode} {round(better.value * better.n)})"
            for name, (row, better) in of_class.items()
        )
        yield (
            f"{late.model}, {level}, exclude {exclude}: late has macro {METRIC} {ours.value:.3f}, {mode} "
            f"{other.value:.3f} ({apart}); worse for {', '.join(classes)}"
        )
