"""Where labels come from, and how those of several origins become one.

    table    a table of the user (--labels)
    dicom    tags of a DICOM series, found when it is read
    bids     names in the paths of a BIDS data set, and its participants.tsv
    msd      dataset.json and file names of the Medical Segmentation Decathlon and nnU-Net
    path     names in the paths of KiTS, BraTS and TotalSegmentator

Per volume and name, the first origin in this order counts. Pure functions over Arrow columns.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.schemas import LABELS, PART_ROWS, VOLUME_LABELS, taken

ORIGINS = TABLE, DICOM, BIDS, MSD, PATH = ("table", "dicom", "bids", "msd", "path")

PAIRS = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.string())]))


@dataclass(frozen=True)
class _Entries:
    """Labels in the long form. Per entry: the number of its volume, the name, the text, and where it comes from."""

    rows: NDArray[np.int64]
    names: pa.Array
    texts: pa.Array
    origins: pa.Array


def from_columns(ids: pa.Array, columns: Mapping[str, pa.Array], origin: str) -> pa.Table:
    """Labels (schemas.VOLUME_LABELS) from columns of text, one row per volume; null cells carry no label.

    columns: by name; names that are not in LABELS become metadata.
    """
    return _labels(ids, [_of_column(name, column, origin) for name, column in columns.items()])


def merged(ids: pa.ChunkedArray, tables: Sequence[pa.Table]) -> pa.Table:
    """The labels of those of these volumes that have some (schemas.VOLUME_LABELS), put together from several tables.

    ids: sorted. tables: VOLUME_LABELS, sorted by volume_id, one row per volume.
    """
    parts = [VOLUME_LABELS.empty_table()]
    for at in range(0, len(ids), PART_ROWS):
        part = _array(ids.slice(at, PART_ROWS))
        slices = [between(table, part[0].as_py(), part[-1].as_py()) for table in tables]
        rows = [_array(pc.index_in(each["volume_id"], part)) for each in slices]
        entries = [_entries(each, numbers) for each, numbers in zip(slices, rows, strict=True)]
        labels = _labels(part, [each for one in entries for each in one])
        known = pa.concat_arrays([pa.array([], pa.string()), *(_array(each["volume_id"]) for each in slices)])
        parts.append(labels.filter(pc.is_in(part, known)))
    return pa.concat_tables(parts)


def with_found(labels: pa.Table, found: pa.ChunkedArray) -> pa.Table:
    """The same labels, and those that were found in the volumes' own tags. found: a map per row: name -> text."""
    pairs = _pairs(found)
    if not pc.any(pc.greater(pc.list_value_length(pairs), 0)).as_py():
        return labels
    ids = _array(labels["volume_id"])
    rows = pa.array(np.arange(len(ids)))
    return _labels(ids, [*_entries(labels, rows), _of_pairs(pairs, rows, DICOM)])


def without(found: pa.ChunkedArray, names: Collection[str]) -> pa.ChunkedArray:
    """What was found (see `with_found`), without these names."""
    if not names:
        return found
    pairs = _pairs(found)
    entries = _of_pairs(pairs, pa.array(np.arange(len(pairs))), DICOM)
    stays = _numbers(pc.invert(pc.is_in(entries.names, pa.array(sorted(names), pa.string()))))
    return pa.chunked_array([_maps(entries.rows[stays], entries.names, entries.texts, stays, len(pairs))])


def names_of(found: pa.ChunkedArray) -> pa.Array:
    """The names that were found, per row, with commas between them; null for none. found: see `with_found`."""
    pairs = _pairs(found)
    lengths = pc.fill_null(pc.list_value_length(pairs), 0).to_numpy()
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(ends, pc.list_flatten(pairs).field("key")), ",")
    return pc.if_else(pa.array(lengths > 0), joined, None)


def own(labels: pa.Table, names: pa.Array) -> pa.Table:
    """The labels (schemas.VOLUME_LABELS) that are not from tags, and that those found in tags do not replace.

    So a table, and paths, give a row of a ledger the same labels as before if its own ones are equal to theirs.
    names: per row, what was found (see `names_of`).
    """
    places = _numbers(pc.is_valid(names))
    if not len(places):
        return labels
    part, numbers = taken(labels, pa.array(places)), np.arange(len(places))
    listed = pc.split_pattern(names.take(pa.array(places)), ",")
    words = pc.unique(pc.list_flatten(listed))
    found = pc.list_parent_indices(listed).to_numpy() * len(words) + _codes(pc.list_flatten(listed), words)
    marks = _of_pairs(_pairs(part["origins"]), pa.array(numbers), "")
    marked = marks.rows[_numbers(pc.not_equal(marks.texts, DICOM))]
    given = _numbers(_array(pc.is_null(part["origins"])))  # in the journal, the labels that the reader was given
    others = pa.array(np.union1d(marked, given))  # few: most have tags alone
    kept = []
    for each in _entries(taken(part, others), others):
        code = _codes(each.names, words)
        replaced = (code >= 0) & np.isin(each.rows * len(words) + code, found)
        origin = _codes(each.origins, pa.array(ORIGINS))
        stays = np.flatnonzero((origin == ORIGINS.index(TABLE)) | ~(replaced | (origin == ORIGINS.index(DICOM))))
        rest = (texts.take(pa.array(stays)) for texts in (each.names, each.texts, each.origins))
        kept.append(_Entries(each.rows[stays], *rest))
    order = np.arange(labels.num_rows)
    order[places] = labels.num_rows + numbers
    return taken(pa.concat_tables([labels, _labels(_array(part["volume_id"]), kept)]), pa.array(order))


def with_tags(ids: pa.ChunkedArray, labels: pa.Table, tags: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """The labels of these volumes, and those that tags are known to give. tags: volume_id -> name -> text."""
    known = sorted(tags)
    names = sorted(set().union(*tags.values()))
    columns = {name: pa.array([tags[one].get(name) for one in known], pa.string()) for name in names}
    return merged(ids, [labels, from_columns(pa.array(known, pa.string()), columns, DICOM)])


def between(labels: pa.Table, first: str, last: str) -> pa.Table:
    """The rows whose ids lie in this range, both ends included. labels: sorted by volume_id."""
    ids = labels["volume_id"]
    start = bisect_left(ids, first, key=lambda one: one.as_py())
    return labels.slice(start, bisect_right(ids, last, start, key=lambda one: one.as_py()) - start)


def counts(labels: pa.Table) -> dict[str, dict[str, int]]:
    """Origin -> label, `metadata` or `volumes` (any of them) -> number of volumes. labels: VOLUME_LABELS."""
    found: Counter[tuple[str, str]] = Counter()
    for batch in labels.select(["origins"]).to_batches(PART_ROWS):
        pairs = _pairs(batch["origins"])
        entries = _of_pairs(pairs, pa.array(np.arange(len(pairs))), "")
        known = pc.is_in(entries.names, pa.array(LABELS))
        names = pc.if_else(known, entries.names, "metadata")
        each = pa.table({"row": entries.rows, "origin": entries.texts, "name": names})
        each = pa.concat_tables([each, each.set_column(2, "name", pa.repeat("volumes", len(names)))])
        volumes = each.group_by(["row", "origin", "name"]).aggregate([]).group_by(["origin", "name"])
        for group in volumes.aggregate([([], "count_all")]).to_pylist():
            found[group["origin"], group["name"]] += group["count_all"]
    order = ("volumes", *LABELS, "metadata")
    return {
        origin: {name: found[origin, name] for name in order if (origin, name) in found}
        for origin in ORIGINS
        if any(key[0] == origin for key in found)
    }


def _labels(ids: pa.Array, entries: Sequence[_Entries]) -> pa.Table:
    """Labels (schemas.VOLUME_LABELS), one row per id. Of entries with one name, that of the first origin counts."""
    rows = np.concatenate([np.zeros(0, np.int64), *(each.rows for each in entries)])
    none = pa.array([], pa.string())
    names, texts, origins = (
        pa.concat_arrays([none, *(getattr(each, name) for each in entries)]) for name in ("names", "texts", "origins")
    )
    order = np.argsort(_codes(origins, pa.array(ORIGINS)), kind="stable")
    words = pa.array([*LABELS, *sorted(set(pc.unique(names).to_pylist()).difference(LABELS))], pa.string())
    keys, first = np.unique((rows * len(words) + _codes(names, words))[order], return_index=True)  # the first of each
    chosen, rows, codes = order[first], keys // len(words), keys % len(words)
    columns = [_scattered(texts, chosen[codes == code], rows[codes == code], len(ids)) for code in range(len(LABELS))]
    other = codes >= len(LABELS)
    metadata = _maps(rows[other], names, texts, chosen[other], len(ids))
    return pa.table([ids, *columns, metadata, _maps(rows, names, origins, chosen, len(ids))], schema=VOLUME_LABELS)


def _scattered(texts: pa.Array, chosen: NDArray[np.int64], rows: NDArray[np.int64], count: int) -> pa.Array:
    """A column of `count` rows, with the chosen texts in these rows and nulls elsewhere."""
    places = np.full(count, -1, np.int64)
    places[rows] = chosen
    return texts.take(pa.array(places, mask=places < 0))


def _maps(rows: NDArray[np.int64], names: pa.Array, texts: pa.Array, chosen: NDArray[np.int64], count: int) -> pa.Array:
    """One map per row: name -> text of the chosen entries, which are in the order of their rows."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    taken = pa.array(chosen)
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), names.take(taken), texts.take(taken))


def _entries(labels: pa.Table, rows: pa.Array) -> list[_Entries]:
    """The entries of a table (schemas.VOLUME_LABELS). rows: the number of each row's volume."""
    origins = _array(labels["origins"])
    named = [
        _of_column(name, _array(labels[name]), pc.coalesce(pc.map_lookup(origins, name, "first"), TABLE), rows)
        for name in LABELS
    ]
    others = _of_pairs(_pairs(labels["metadata"]), rows, TABLE)
    marks = _of_pairs(_pairs(labels["origins"]), rows, "")
    ours = marks.texts.filter(pc.invert(pc.is_in(marks.names, pa.array(LABELS))))  # in the order of the metadata
    return [*named, replace(others, origins=ours) if len(ours) == len(others.rows) else others]


def _of_column(name: str, column: pa.Array, origin: pa.Array | str, rows: pa.Array | None = None) -> _Entries:
    valid = pc.is_valid(column)
    places = pc.indices_nonzero(valid) if rows is None else rows.filter(valid)
    count = len(places)
    origins = pa.repeat(origin, count) if isinstance(origin, str) else origin.filter(valid)
    return _Entries(places.to_numpy().astype(np.int64), pa.repeat(name, count), column.drop_null(), origins)


def _codes(texts: pa.Array, words: pa.Array) -> NDArray[np.int64]:
    """The place of each text among the words; -1 for others."""
    codes: NDArray[np.int64] = pc.fill_null(pc.index_in(texts, words), -1).to_numpy().astype(np.int64)
    return codes


def _numbers(mask: pa.Array) -> NDArray[np.int64]:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def _of_pairs(pairs: pa.Array, rows: pa.Array, origin: str) -> _Entries:
    flat = pc.list_flatten(pairs)
    places = rows.take(pc.list_parent_indices(pairs)).to_numpy().astype(np.int64)
    return _Entries(places, flat.field("key"), flat.field("value"), pa.repeat(origin, len(flat)))


def _pairs(maps: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Maps as lists, whose length Arrow can tell."""
    return _array(maps).cast(PAIRS)


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
