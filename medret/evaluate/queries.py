"""A query archive: labelled NIfTI files that are not in the store, encoded as the snapshot's recipe says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import pyarrow as pa

from medret.archive import Labels, list_archive, read_labels
from medret.archive.listing import ArchiveObject
from medret.errors import UsageError, WeightsError
from medret.evaluate.configs import Selection, arms_of
from medret.evaluate.query_set import Failure, QuerySet, known_labels
from medret.schemas import LABELS
from medret.search import Snapshot
from medret.search.query import QueryVectors


def file_panel(
    snapshot: Snapshot,
    archive_uri: str,
    labels_uri: str | None,
    selection: Selection,
    weights: Mapping[str, str],
    without: AbstractSet[str] = frozenset(),
    report: Callable[[str], None] = lambda _: None,
) -> QuerySet:
    """The NIfTI files of an archive ask for the volumes of a snapshot.

    labels_uri: table of their labels, as for `medret index`. weights: model -> path or URI, where it lies elsewhere.
    without: volumes of the snapshot that are not to be found.
    A file that cannot be used becomes a failure. Raises UsageError when none can be, or an option is wrong.
    """
    listing = list_archive(archive_uri)
    join = read_labels(labels_uri, listing)
    if join.mismatch:
        raise UsageError(join.mismatch)
    known = {one.volume_id: join.labels.get(one.volume_id, Labels()) for one in listing.objects}
    first = arms_of(snapshot, selection)[0]
    encoded: dict[tuple[str, str, str], QueryVectors] = {}

    def encode(one: ArchiveObject, model: str, aggregation: str) -> QueryVectors:
        modality = known[one.volume_id].modality
        given = weights.get(model)
        return snapshot.resolve(one.uri, model=model, aggregation=aggregation, weights=given, modality=modality)

    used: list[ArchiveObject] = []
    failures = []
    for number, one in enumerate(listing.objects, start=1):
        report(f"query {number}/{len(listing.objects)} {one.volume_id}")
        try:
            encoded[one.volume_id, first.model, first.aggregation] = encode(one, first.model, first.aggregation)
            used.append(one)
        except WeightsError:
            raise
        except UsageError as error:
            failures.append(Failure(one.volume_id, str(error)))
    if not used:
        raise UsageError(
            f"{archive_uri}: none of its {len(failures)} files can be used as a query; {failures[0].reason}"
        )

    def resolve(row: int, model: str, aggregation: str) -> QueryVectors:
        one = used[row]
        ready = encoded.pop((one.volume_id, model, aggregation), None)
        return ready or encode(one, model, aggregation)

    candidates = known_labels(snapshot, without)
    numbers = {volume_id: number for number, volume_id in enumerate(candidates["volume_id"].to_pylist())}
    own = [
        tuple(
            numbers[known_id]
            for known_id in sorted(encoded[one.volume_id, first.model, first.aggregation].own_ids)
            if known_id in numbers
        )
        for one in used
    ]
    return QuerySet(_label_table(used, known), candidates, own, resolve, tuple(failures), frozenset(without))


def _label_table(used: Sequence[ArchiveObject], known: Mapping[str, Labels]) -> pa.Table:
    """The labels of the files, with the columns that `Snapshot.labels` has."""
    columns: dict[str, list[str | None]] = {
        "volume_id": [one.volume_id for one in used],
        "uri": [one.uri for one in used],
    }
    for name in LABELS:
        columns[name] = [getattr(known[one.volume_id], name) for one in used]
    for key in sorted({key for one in used for key in known[one.volume_id].metadata}):
        columns.setdefault(key, [known[one.volume_id].metadata.get(key) for one in used])
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
