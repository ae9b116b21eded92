"""Who is asked and who may be found: the volumes of a snapshot among themselves, or files against a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.search import Snapshot
from medret.search.query import QueryVectors

Resolve = Callable[[int, str, str], QueryVectors]  # a query's row, a model and an aggregation to vectors


@dataclass(frozen=True)
class Failure:
    """A query file that could not be used."""

    query: str
    reason: str


@dataclass(frozen=True)
class QuerySet:
    """Queries and candidates.

    queries, candidates: label tables (volume_id, uri, subject, ...), one row each. own: of each query the candidates
    that are the query itself. resolve: gives a query's vectors. failures: query files that are not among the queries.
    hidden: volumes of the snapshot that are not candidates.
    """

    queries: pa.Table
    candidates: pa.Table
    own: Sequence[Sequence[int]]
    resolve: Resolve
    failures: tuple[Failure, ...] = ()
    hidden: frozenset[str] = frozenset()
    _kept: dict[tuple[int, str, str], QueryVectors] = field(default_factory=dict, repr=False)

    KEPT_MAX = 4096

    def vectors(self, rows: NDArray[np.int64], model: str, aggregation: str) -> list[QueryVectors]:
        """The vectors of these queries; those of small panels are kept, because every arm asks for them again."""
        asked = []
        for row in rows.tolist():
            key = (row, model, aggregation)
            vectors = self._kept.get(key)
            if vectors is None:
                vectors = self.resolve(*key)
                if self.queries.num_rows <= self.KEPT_MAX:
                    self._kept[key] = vectors
            asked.append(vectors)
        return asked

    def forget(self) -> None:
        """Drop the vectors that were kept."""
        self._kept.clear()


def known_labels(snapshot: Snapshot, without: AbstractSet[str]) -> pa.Table:
    """The labels of a snapshot, less some volumes; raises UsageError for one that it does not have."""
    labels = snapshot.labels()
    ids: list[str] = labels["volume_id"].to_pylist()
    unknown = sorted(frozenset(without) - frozenset(ids))
    if unknown:
        raise UsageError(
            f"{snapshot.uri} has no volume '{unknown[0]}', which is to be left out ({len(unknown)} in all)"
        )
    rows = [row for row, volume_id in enumerate(ids) if volume_id not in without]
    return labels.take(pa.array(rows, pa.int64())) if without else labels


def archive_panel(
    snapshot: Snapshot, without: AbstractSet[str] = frozenset(), sample: int | None = None, seed: int = 0
) -> QuerySet:
    """Every volume of a snapshot, or `sample` of them drawn at random, asks for the others.

    without: volumes that are neither asked nor found.
    """
    labels = known_labels(snapshot, without)
    rows = np.arange(labels.num_rows)
    if sample is not None and sample < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    queries = labels.take(pa.array(rows))
    ids: list[str] = queries["volume_id"].to_pylist()

    def resolve(row: int, model: str, aggregation: str) -> QueryVectors:
        return snapshot.resolve(ids[row], model=model, aggregation=aggregation)

    return QuerySet(queries, labels, [(int(row),) for row in rows], resolve, hidden=frozenset(without))
