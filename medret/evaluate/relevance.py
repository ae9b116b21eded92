"""Which candidates are relevant to a query, and which it may find: labels as arrays.

A label may name several values, separated by `;`: two volumes are relevant to each other if they share one. Queries and
candidates are the same volumes if an archive is searched for its own, and different ones for a query archive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SELF = "self"  # the exclusion of the query's own volume alone
SEPARATOR = ";"
SUBJECT = "subject"


def values_of(label: str | None) -> tuple[str, ...]:
    """The values of a label, sorted; none for one that is absent or blank."""
    return tuple(sorted({part.strip() for part in (label or "").split(SEPARATOR)} - {""}))


def text_column(labels: pa.Table, name: str) -> list[str | None]:
    """A label column as text: None for blank text, and everywhere if there is no such column."""
    if name not in labels.column_names:
        return [None] * labels.num_rows
    return [value if value and value.strip() else None for value in labels[name].to_pylist()]


@dataclass(frozen=True)
class Level:
    """One label column of queries and candidates, as class memberships.

    classes: names, sorted. queries: (q, classes) bool. candidates: (n, classes) bool.
    """

    name: str
    classes: tuple[str, ...]
    queries: NDArray[np.bool_]
    candidates: NDArray[np.bool_]

    def relevance(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each candidate shares a value with each of these queries: (len(rows), n)."""
        shared: NDArray[np.float32] = self.queries[rows].astype(np.float32) @ self.candidates.T.astype(np.float32)
        return shared > 0


def level_of(name: str, queries: pa.Table, candidates: pa.Table) -> Level:
    """The memberships of a label column."""
    sides = [[values_of(text) for text in text_column(table, name)] for table in (queries, candidates)]
    classes = tuple(sorted({value for side in sides for values in side for value in values}))
    return Level(name, classes, _members(sides[0], classes), _members(sides[1], classes))


def _members(values: Sequence[tuple[str, ...]], classes: Sequence[str]) -> NDArray[np.bool_]:
    number = {name: at for at, name in enumerate(classes)}
    members = np.zeros((len(values), len(classes)), bool)
    for row, classes_of_row in enumerate(values):
        members[row, [number[value] for value in classes_of_row]] = True
    return members


def class_counts(labels: pa.Table, level: str) -> dict[str, int]:
    """Count the volumes of each class, by name."""
    counts = Counter(value for text in text_column(labels, level) for value in values_of(text))
    return dict(sorted(counts.items()))


@dataclass(frozen=True)
class Exclusion:
    """Which candidates each query must not find: its own volume, and those with its value of a column.

    column: `self` excludes only the own volume. queries, candidates: the value as a number; -1 if there is none: then
    only the own volume is excluded. self_candidates: per query, the candidates that are the query itself.
    """

    column: str
    queries: NDArray[np.int64]
    candidates: NDArray[np.int64]
    self_candidates: Sequence[Sequence[int]]

    def kept(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of these queries may find each candidate: (len(rows), n)."""
        values = self.queries[rows][:, None]
        kept: NDArray[np.bool_] = (self.candidates[None] != values) | (values < 0)
        for at, row in enumerate(rows):
            kept[at, list(self.self_candidates[row])] = False
        return kept


def exclusion_of(
    column: str, queries: pa.Table, candidates: pa.Table, self_candidates: Sequence[Sequence[int]]
) -> Exclusion:
    """The exclusion by a label column, or `self`."""
    if column == SELF:
        return Exclusion(
            column, np.full(queries.num_rows, -1, np.int64), np.full(candidates.num_rows, -1, np.int64), self_candidates
        )
    numbers: dict[str, int] = {}
    sides = [
        np.array(
            [-1 if v is None else numbers.setdefault(v, len(numbers)) for v in text_column(table, column)], np.int64
        )
        for table in (queries, candidates)
    ]
    return Exclusion(column, sides[0], sides[1], self_candidates)


def subject_numbers(labels: pa.Table) -> NDArray[np.int64]:
    """Number the subjects from 0; a volume without a subject counts as its own subject."""
    numbers: dict[str | int, int] = {}
    named = text_column(labels, SUBJECT)
    return np.array([numbers.setdefault(row if name is None else name, len(numbers)) for row, name in enumerate(named)])
