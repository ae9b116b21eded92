"""The figures of an evaluation by masks: its options, its rows, and what a person reads of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medret.evaluate.configs import Selection
from medret.evaluate.levels import MIN_RELEVANT
from medret.evaluate.metrics import MACRO, MICRO, Bootstrap, average
from medret.evaluate.structure_scores import ASKING, LOCALISATION, LOCALISED, METRICS_OF, RECALL, Items, MaskedVolumes
from medret.evaluate.study import Study
from medret.html.plots import Bar, bars
from medret.search.options import SearchOptions

Row = dict[str, Any]  # a figure: column -> value
Search = tuple[str, str, str, str]  # model, index, mode, exclude
SHOWN = [(asks, metric) for asks in ASKING for metric in METRICS_OF[asks] if metric in (RECALL, LOCALISATION)]


@dataclass(frozen=True)
class StructureOptions:
    """What to evaluate. excludes: empty for subject.

    least_voxels: from how many voxels on a slice shows a structure. absent: whether a structure that no mask of a
    volume names counts as absent from it; otherwise nothing is known about it there, and the volume is no candidate for
    it. per_slice: of the modes vote, max and sum.
    """

    excludes: Sequence[str] = ()
    selection: Selection = field(default_factory=Selection)
    min_relevant: int = MIN_RELEVANT
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    least_voxels: int = 1
    absent: bool = False
    depth: int | None = None
    per_slice: int = SearchOptions().per_slice


@dataclass(frozen=True)
class StructureEvaluation:
    """A finished evaluation by masks.

    rows: its figures. volumes: those that ask and are found. unseen: structure -> volumes that have it inside the box,
    but show it in no slice that was embedded.
    """

    store: str
    snapshot: str
    rows: Sequence[Row]
    volumes: int
    without_masks: int
    slices: int
    structures: Mapping[str, Mapping[str, int]]
    unseen: Mapping[str, int]
    left_out: Mapping[str, int]
    options: StructureOptions
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """The evaluation as a JSON object."""
        return {
            "store": self.store,
            "snapshot": self.snapshot,
            "queries": self.volumes,
            "candidates": self.volumes,
            "slices": self.slices,
            "volumes_without_masks": self.without_masks,
            "min_relevant": self.options.min_relevant,
            "least_voxels": self.options.least_voxels,
            "unnamed_is_absent": self.options.absent,
            "structures": {level: dict(counts) for level, counts in self.structures.items()},
            "in_no_embedded_slice": dict(self.unseen),
            "too_few_relevant": dict(self.left_out),
            "notes": list(self.notes),
            "rows": list(self.rows),
        }

    def searches(self) -> list[Search]:
        """Every search that has figures; mode `slice` answers single slices."""
        return list(dict.fromkeys((row["model"], row["index"], row["mode"], row["exclude"]) for row in self.rows))

    def figures(self, search: Search, level: str, asks: str, metric: str) -> dict[str, Row]:
        """Structure -> its figure, macro and micro first."""
        key = (*search, level, asks, metric)
        names = ("model", "index", "mode", "exclude", "level", "asks", "metric")
        return {row["class"]: row for row in self.rows if tuple(row[name] for name in names) == key}

    def study(self) -> Study:
        """The figures as those of a study, with plots by structure."""
        plots = []
        for search in self.searches():
            for level in self.structures:
                for asks, metric in SHOWN:
                    rows = self.figures(search, level, asks, metric)
                    heading = (
                        f"{level.replace('_', ' ')}, {' '.join(search[:3])}, exclude {search[3]}, {asks}: {metric}"
                    )
                    found = [_bar(row) for name, row in rows.items() if name != MICRO]
                    plots += [(heading, bars(found, heading))] if found else []
        return Study("structures", self.store, self.snapshot, self.rows, plots, self.notes)

    def lines(self) -> Iterator[str]:
        """What a person reads on the terminal: macro figures of all searches, then those of each structure."""
        yield (
            f"snapshot {self.snapshot}: {self.volumes} volumes with masks and {self.slices} slices ask and are found; "
            f"{self.without_masks} volumes without masks are not"
        )
        for level in self.structures:
            yield ""
            yield f"{level.replace('_', ' ')}, macro: value (95 %; chance), n"
            for search in self.searches():
                for asks, metric in SHOWN:
                    row = self.figures(search, level, asks, metric).get(MACRO)
                    if row:
                        name = f"{' '.join(search[:3])}, exclude {search[3]}"
                        yield f"  {name:48} {asks:10} {metric:16} {_in_words(row)}"
            yield from self._by_structure(level)
        for name, count in self.left_out.items():
            yield f"not scored, {name}: {count} volumes, fewer than {self.options.min_relevant} others show it"
        for name, count in self.unseen.items():
            yield f"note: {count} volumes have {name}, but show it in no slice that was embedded"
        yield from (f"note: {note}" for note in self.notes)

    def _by_structure(self, level: str) -> Iterator[str]:
        """A table with a line per structure: the figures of single slices and of the last search, with chance."""
        model, index, mode, exclude = self.searches()[-1]
        columns = {}
        for asks, metric in SHOWN:
            own = mode if METRICS_OF[asks] != METRICS_OF["slice"] else "slice"
            columns[asks, metric] = self.figures((model, index, own, exclude), level, asks, metric)
        heads = ["loc.@15" if (asks, metric) == (LOCALISED, LOCALISATION) else asks for asks, metric in SHOWN]
        yield ""
        yield f"{level.replace('_', ' ')}, {model} {index} {mode}, exclude {exclude}: recall@1 or loc.@15, /chance"
        yield f"  {'':28}" + "".join(f"{head:>11}" for head in heads)
        for name in next(iter(columns.values()), {}):
            cells = [_pair(rows.get(name)) for rows in columns.values()]
            yield f"  {name[:28]:28}" + "".join(f"{cell:>11}" for cell in cells)


def _bar(row: Row) -> Bar:
    known = row["low"] is not None
    low, high = (row["low"], row["high"]) if known else (0.0, 0.0)
    return Bar(row["class"], row["n"], row["value"], low, high, row["chance"], known, row["class"] == MACRO)


def _in_words(row: Row) -> str:
    interval = "none" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    return f"{row['value']:.3f} ({interval}; {row['chance']:.3f}), {row['n']}"


def _pair(row: Row | None) -> str:
    return f"{row['value']:.2f}/{row['chance']:.2f}" if row else ""


def figure_rows(
    found: Mapping[tuple[str, str], Sequence[Items]],
    volumes: MaskedVolumes,
    exclude: str,
    search: SearchOptions,
    options: StructureOptions,
) -> Iterator[Row]:
    """The figures of one search mode."""
    for (level, asking), parts in found.items():
        items, names = Items.of(parts), volumes.levels[level].names
        members = np.zeros((len(items.volumes), len(names)), bool)
        members[np.arange(len(members)), items.structures] = True
        _, subjects = np.unique(volumes.subjects[items.volumes], return_inverse=True)
        means = average(items.values, items.chances, members, subjects, options.bootstrap)
        fixed = {"model": search.model, "aggregation": None, "index": search.index, "mode": search.mode}
        fixed |= {"asks": asking, "exclude": exclude, "level": level}
        for at, name in enumerate((MACRO, MICRO, *names)):
            for number, metric in enumerate(METRICS_OF[asking] if means.queries[at] else ()):
                figure = vars(means.figure(at, number))
                known = {
                    key: None if isinstance(value, float) and math.isnan(value) else value
                    for key, value in figure.items()
                }
                yield {**fixed, "class": name, "metric": metric, **known}
