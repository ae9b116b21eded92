"""Lists of the indexed volumes and the values of their labels. Pure functions over tables of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.errors import NotFoundError, UsageError
from medret.search import Snapshots, VolumeName
from medret.search.filters import kept_rows, parse_filter
from medret.storage import redacted

FACET_VALUES = 50  # per label, the most frequent; a label with more distinct values is searched, not chosen from
NO_LABELS = ("volume_id", "uri")


def listed(
    snapshots: Snapshots, *, where: str | None, contains: str, after: str | None, limit: int, facets: bool
) -> dict[str, Any]:
    """A page of volumes in the order of the stores and of volume_id, as `messages.VolumesAnswer`.

    where: a filter on labels. contains: a part of the volume_id, whatever its case. after: `next` of the page before.
    Raises UsageError.
    """
    uris = [contents.uri for contents in snapshots.corpus.stores]
    tables = [_kept(labels, where, contains) for labels in snapshots.corpus.labels]
    number, volume_id = _place(after, len(tables))
    rows, rest, place = [], limit, None
    for store in range(number, len(tables)):
        table = tables[store]
        if store == number and volume_id is not None:
            table = table.filter(pc.greater(table["volume_id"], volume_id))
        page = table.slice(0, rest)
        rows += [_row(values, uris[store]) for values in page.to_pylist()]
        rest -= page.num_rows
        if table.num_rows > page.num_rows:
            place = f"{store}:{rows[-1]['volume_id']}"
            break
    return {
        "total": sum(table.num_rows for table in tables),
        "volumes": rows,
        "next": place,
        "facets": _facets(tables) if facets else None,
    }


def _kept(labels: pa.Table, where: str | None, contains: str) -> pa.Table:
    if where:
        labels = labels.filter(pa.array(kept_rows(parse_filter(where, labels), labels)))
    if contains:
        labels = labels.filter(pc.match_substring(labels["volume_id"], contains, ignore_case=True))
    return labels


def _place(after: str | None, stores: int) -> tuple[int, str | None]:
    if after is None:
        return 0, None
    number, _, volume_id = after.partition(":")
    if not (number.isdecimal() and number.isascii() and int(number) < stores and volume_id):
        raise UsageError(f"after is {after!r}, expected `next` of an earlier page")
    return int(number), volume_id


def _row(values: dict[str, Any], store: str) -> dict[str, Any]:
    labels = {name: value for name, value in values.items() if name not in NO_LABELS}
    return {"volume_id": values["volume_id"], "store": store, "labels": labels}


def _facets(tables: Sequence[pa.Table]) -> dict[str, list[dict[str, Any]]]:
    facets = {}
    for name in tables[0].column_names:
        if name in NO_LABELS:
            continue
        values = pa.chunked_array([chunk for table in tables for chunk in table[name].chunks], pa.string())
        counted = pc.value_counts(values)
        if 1 <= len(counted) <= FACET_VALUES:
            pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
            in_order = sorted(pairs, key=lambda pair: (-pair[1], pair[0] is None, pair[0] or ""))
            facets[name] = [{"value": value, "count": count} for value, count in in_order]
    return facets


def described(snapshots: Snapshots, name: VolumeName) -> dict[str, Any]:
    """What is known of one volume, as `messages.VolumeAnswer`; raises NotFoundError."""
    corpus = snapshots.corpus
    found = corpus.find(name.text)
    if found is None:
        raise NotFoundError(f"there is no volume '{name.volume_id}'")
    volume, row = found
    contents = corpus.stores[volume[1]]
    slices = corpus.index(corpus.recipe(None), None).slices_of(volume)
    planes: dict[str, list[int]] = {}
    if slices is not None and slices.slice_indices is not None:
        for plane, index in sorted(zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)):
            planes.setdefault(str(plane), []).append(index)
    spacing_mm = contents.ledger.spacing_mm(volume[0])
    shape = contents.ledger.shape(volume[0])
    return {
        "volume_id": row.volume_id,
        "store": contents.uri,
        "labels": dict(row.labels),
        "uri": redacted(row.uri),
        "planes": planes,
        "shape": None if shape is None else list(shape),
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "previews": [],
        "snapshots": list(snapshots.manifests),
    }
