"""What an evaluation gives: rows of figures, and all that is needed to believe them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.averages import MACRO, MICRO, Averages, Bootstrap
from medret.evaluate.configs import SearchConfig
from medret.evaluate.confounds import Confound
from medret.evaluate.metrics import METRICS
from medret.evaluate.query_set import QuerySet
from medret.visible import csv_text

ANN_RECALL = "ann_recall@10"
ALL = "all"  # level and class of a figure that has nothing to do with labels


@dataclass(frozen=True)
class Row:
    """One figure. low, high: its 95 % interval over subjects. chance: of a random ranking, averaged alike.

    low and high are NaN where there is no interval: for a class of one subject, and a macro mean over such a class.
    n: queries averaged. subjects: that these are of.
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
        """The row as a JSON object; null for a bound that there is not."""
        return {name.rstrip("_"): None if value != value else value for name, value in asdict(self).items()}

    @property
    def has_interval(self) -> bool:
        """Whether low and high are known."""
        return not math.isnan(self.low)

    @property
    def arm(self) -> tuple[str, str, str, str]:
        """The names of the row's arm."""
        return self.model, self.aggregation, self.index, self.mode


def row_of(
    arm: SearchConfig, exclude: str, level: str, class_: str, metric: str, means: Averages, at: int, number: int
) -> Row:
    """One figure of some averages: their row `at`, column `number`."""
    return Row(
        arm.model,
        arm.aggregation,
        arm.index,
        arm.mode,
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
        default=arm.default,
    )


@dataclass(frozen=True)
class LeftOut:
    """Queries of a level that were not scored under an exclusion: too few relevant volumes left, or no label."""

    exclude: str
    level: str
    counted: int
    classes: int
    too_few_relevant: int
    by_class: Mapping[str, int]
    unlabelled: int


@dataclass(frozen=True)
class Detail:
    """What the leading arm found, query by query, under one exclusion.

    hits, scores: (q, 10), numbers of candidates, -1 past the end. values: level -> (q, metrics), NaN where not counted.
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
    arms: Sequence[SearchConfig]
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
    panel: QuerySet
    details: Mapping[str, Detail] = field(default_factory=dict)
    seconds: float = 0.0

    def figure(self, arm: SearchConfig, exclude: str, level: str, class_: str, metric: str) -> Row | None:
        """One row, if there is such a one."""
        return self._by_key.get((arm.model, arm.aggregation, arm.index, arm.mode, exclude, level, class_, metric))

    @property
    def _by_key(self) -> dict[tuple[str, ...], Row]:
        held: dict[tuple[str, ...], Row] | None = self.__dict__.get("_index")
        if held is None:
            held = {(*row.arm, row.exclude, row.level, row.class_, row.metric): row for row in self.rows}
            object.__setattr__(self, "_index", held)
        return held

    def classes_of(self, arm: SearchConfig, exclude: str, level: str) -> list[str]:
        """The classes that have figures, sorted."""
        wanted = (arm.model, arm.aggregation, arm.index, arm.mode)
        found = {row.class_ for row in self.rows if (row.arm, row.exclude, row.level) == (wanted, exclude, level)}
        return sorted(found - {MACRO, MICRO, ALL})

    def to_json(self) -> dict[str, Any]:
        """The evaluation as a JSON object."""
        return {
            "store": self.store,
            "snapshot": self.snapshot,
            "queries": self.panel.queries.num_rows,
            "candidates": self.panel.candidates.num_rows,
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
            "failed_queries": [asdict(one) for one in self.panel.failures],
            "seconds": round(self.seconds, 3),
            "rows": [row.to_json() for row in self.rows],
        }

    def to_csv(self) -> str:
        """The rows as CSV text."""
        rows = [row.to_json() for row in self.rows]
        names = [one.name.rstrip("_") for one in fields(Row)]
        return csv_text(names, ([row[name] for name in names] for row in rows))
