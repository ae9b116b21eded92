"""Who asks and who may be found: a snapshot's volumes among themselves, or labelled files against a snapshot.

Files are sliced and embedded as the snapshot's recipe says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import labels_of, list_archive, read_labels
from medret.archive.label_origins import with_tags
from medret.archive.listing import ArchiveObject
from medret.errors import StorageError, UsageError, WeightsError
from medret.evaluate.configs import Selection, configs_of
from medret.schemas import LABELS
from medret.search import Snapshot
from medret.search.query import QueryVectors, VolumeName
from medret.storage import redacted
from medret.volume.dicom.tags import head_labels

KEPT_MAX = 4096  # queries

Report = Callable[[str], None]  # takes a line of progress
Resolve = Callable[[int, str, str], QueryVectors]  # a query's row, a model and an aggregation to vectors


@dataclass(frozen=True)
class Failure:
    """A query file that could not be used."""

    query: str
    reason: str


@dataclass(frozen=True)
class QuerySet:
    """Queries and candidates.

    queries, candidates: label tables (volume_id, uri, subject, ...), one row per volume.
    self_candidates: per query, the candidates that are the query itself.
    resolve: returns the vectors of a query. failures: files that cannot be queries.
    excluded: volumes of the snapshot that are not candidates.
    """

    queries: pa.Table
    candidates: pa.Table
    self_candidates: Sequence[Sequence[int]]
    resolve: Resolve
    failures: tuple[Failure, ...] = ()
    excluded: frozenset[str] = frozenset()

    def vectors(self, rows: NDArray[np.int64], model: str, aggregation: str) -> list[QueryVectors]:
        """The vectors of these queries; those of small sets are kept, because every configuration needs them."""
        return [self._kept(row, model, aggregation) for row in rows.tolist()]

    @cached_property
    def _kept(self) -> Any:
        return lru_cache(KEPT_MAX)(self.resolve)

    def forget(self) -> None:
        """Drop the vectors that were kept."""
        self._kept.cache_clear()


def known_labels(snapshot: Snapshot, without: AbstractSet[str]) -> pa.Table:
    """The labels of a snapshot without some volumes; raises UsageError for one that it does not have."""
    labels = snapshot.labels()
    unknown = sorted(without - set(labels["volume_id"].to_pylist()))
    if unknown:
        raise UsageError(
            f"{snapshot.uri} has no volume '{unknown[0]}', which is to be left out ({len(unknown)} in all)"
        )
    return labels.filter(pc.invert(pc.is_in(labels["volume_id"], pa.array(sorted(without), pa.string()))))


def archive_queries(
    snapshot: Snapshot, without: AbstractSet[str] = frozenset(), sample: int | None = None, seed: int = 0
) -> QuerySet:
    """Query a snapshot with each of its volumes, or with a random `sample` of them.

    without: volumes that are neither queries nor candidates.
    """
    labels = known_labels(snapshot, without)
    rows = np.arange(labels.num_rows)
    if sample is not None and sample < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    queries = labels.take(pa.array(rows))
    ids: list[str] = queries["volume_id"].to_pylist()

    def resolve(row: int, model: str, aggregation: str) -> QueryVectors:
        return snapshot.resolve(VolumeName(ids[row]), model=model, aggregation=aggregation)

    return QuerySet(queries, labels, [(int(row),) for row in rows], resolve, excluded=frozenset(without))


def file_queries(
    snapshot: Snapshot,
    archive_uri: str,
    labels_uri: str | None,
    selection: Selection,
    weights: Mapping[str, str],
    without: AbstractSet[str] = frozenset(),
    report: Report = lambda _: None,
) -> QuerySet:
    """Query a snapshot with the volumes of an archive.

    labels_uri: table of their labels, as for `medret index`. weights: model -> path or URI, if its weights are
    not where the store says. without: volumes of the snapshot that are not candidates.
    A file that cannot be used becomes a failure. Raises UsageError if none can be used or an option is wrong.
    """
    listing = list_archive(archive_uri)
    join = read_labels(labels_uri, listing)
    if join.mismatch:
        raise UsageError(join.mismatch)
    files = tuple(listing.items())
    if not files:
        skipped = ", ".join(f"{rule} {number}" for rule, number in sorted(listing.skipped.items()))
        raise UsageError(f"--queries {redacted(archive_uri)} holds no volumes to ask with ({skipped})")
    ids = listing.objects["volume_id"]
    labels = with_tags(ids, join.labels, head_labels(listing.series))
    known = {row["volume_id"]: row for row in labels_of(ids, labels).to_pylist()}
    first = configs_of(snapshot, selection)[0]

    def encode(file: ArchiveObject, model: str, aggregation: str) -> QueryVectors:
        modality = known[file.volume_id]["modality"]
        weights_uri = weights.get(model)
        return snapshot.resolve(file.uri, model=model, aggregation=aggregation, weights=weights_uri, modality=modality)

    used: list[tuple[ArchiveObject, QueryVectors]] = []
    failures = []
    for number, file in enumerate(files, start=1):
        report(f"query {number}/{len(files)} {file.volume_id}")
        try:
            used.append((file, encode(file, first.model, first.aggregation)))
        except WeightsError:
            raise
        except (UsageError, StorageError) as error:
            failures.append(Failure(file.volume_id, str(error)))
    if not used:
        raise UsageError(
            f"{archive_uri}: none of its {len(failures)} files can be used as a query; {failures[0].reason}"
        )

    def resolve(row: int, model: str, aggregation: str) -> QueryVectors:
        file, vectors = used[row]
        return vectors if (model, aggregation) == (first.model, first.aggregation) else encode(file, model, aggregation)

    candidates = known_labels(snapshot, without)
    numbers = {volume_id: number for number, volume_id in enumerate(candidates["volume_id"].to_pylist())}
    self_candidates = [tuple(numbers[one] for one in sorted(numbers.keys() & own.volume_ids)) for _, own in used]
    queries = _label_table([file for file, _ in used], known)
    return QuerySet(queries, candidates, self_candidates, resolve, tuple(failures), frozenset(without))


def _label_table(used: Sequence[ArchiveObject], known: Mapping[str, dict[str, Any]]) -> pa.Table:
    """The labels of the files, with the columns that `Snapshot.labels` has. known: rows of VOLUME_LABELS by id."""
    columns: dict[str, list[str | None]] = {
        "volume_id": [file.volume_id for file in used],
        "uri": [file.uri for file in used],
    }
    for name in LABELS:
        columns[name] = [known[file.volume_id][name] for file in used]
    metadata = [dict(known[file.volume_id]["metadata"]) for file in used]
    for key in sorted(set().union(*metadata)):
        columns.setdefault(key, [row.get(key) for row in metadata])
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
