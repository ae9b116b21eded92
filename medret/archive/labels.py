"""Join labels to the volumes of a listing: from a CSV or Parquet table, or from dataset.json files.

A row names its volume in the column `volume_id` or `path`. Ids are joined by column; `medret.archive.volume_names`
finds the volumes of the rows that write them in another way. The columns subject, modality, body_region and organ
become labels, all others metadata. Empty cells, and words that stand for them, carry no label. Rows that match no
volume are counted, and a table that matches nothing is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.label_sources import ID_COLUMNS, MsdTask, Table, read_descriptions, read_table
from medret.archive.listing import DESCRIPTION, Listing
from medret.archive.volume_names import Finder, Match
from medret.errors import UsageError
from medret.modalities import modality_label
from medret.schemas import LABELS, VOLUME_LABELS, in_order, in_pieces, taken

# A map as a list, whose length Arrow can tell.
_PAIRS = pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.string())]))
_NO_LABELS = pa.Table.from_pylist([{"volume_id": "", "metadata": []}], VOLUME_LABELS)


@dataclass(frozen=True)
class LabelJoin:
    """Labels joined to the volumes of a listing.

    labels: those of the volumes that have a row or a dataset.json (schemas.VOLUME_LABELS), sorted by volume_id.
    unmatched_rows: rows that do not name one volume of the listing; ambiguous_rows of them fit several equally well.
    source: URI of the table, or "dataset.json"; None without labels.
    unmatched_example: the first unmatched name. volume_example: the first volume's id.
    root: for a table from another machine, the folder before the ids there.
    ignored: path -> reason, for dataset.json files of other tools.
    """

    labels: pa.Table
    unmatched_rows: int
    unlabelled_volumes: int
    source: str | None = None
    ambiguous_rows: int = 0
    unmatched_example: str | None = None
    volume_example: str | None = None
    root: str | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The counts for reports, without names, which may be those of patients. matched: number of volumes."""
        return {
            "source": self.source,
            "matched": self.labels.num_rows,
            "unmatched_rows": self.unmatched_rows,
            "ambiguous_rows": self.ambiguous_rows,
            "unlabelled_volumes": self.unlabelled_volumes,
            "ignored_files": len(self.ignored),
        }

    @property
    def mismatch(self) -> str | None:
        """Why the table is useless: none of its rows matches a volume. None if one does."""
        if self.labels.num_rows or self.volume_example is None or self.source in (None, DESCRIPTION):
            return None
        if self.unmatched_example is None:
            return f"label table {self.source} has no rows below its column names"
        several = f" ({self.ambiguous_rows} fit several volumes)" if self.ambiguous_rows else ""
        return (
            f"label table {self.source}: none of its {self.unmatched_rows} rows names one volume of the archive"
            f"{several}: a row names {self.unmatched_example!r}, a volume is called {self.volume_example!r}; give "
            "paths below the archive in the column path or volume_id"
        )


def read_labels(table_uri: str | None, listing: Listing) -> LabelJoin:
    """Read labels and join them to the listed volumes.

    table_uri: of a CSV or Parquet file; None reads the archive's dataset.json files, if there are any.

    Raises UsageError, naming file and column, for an unreadable file, no id column, or two rows that disagree on one
    volume. `LabelJoin.mismatch` tells whether no row matches.
    """
    if table_uri is None:
        return _from_descriptions(listing)
    table = read_table(table_uri)
    columns = _known_columns(table)
    rows = _joined(columns, table, listing)
    labels = _distinct(table.name, _labelled(columns, table, rows.volume_ids))
    objects, unmatched = listing.objects, pc.indices_nonzero(pc.is_null(rows.volume_ids))
    return LabelJoin(
        labels,
        len(unmatched),
        objects.num_rows - labels.num_rows,
        table.name,
        rows.ambiguous,
        next(iter(_names(columns, table, unmatched[:1])[0]), "") if len(unmatched) else None,
        objects["volume_id"][0].as_py() if objects.num_rows else None,
        rows.root,
    )


def labels_of(volume_ids: pa.ChunkedArray, labels: pa.Table) -> pa.Table:
    """The labels of these volumes, one row per id (schemas.VOLUME_LABELS); nulls and no metadata for those without."""
    known = pa.concat_tables([labels, _NO_LABELS])
    rows = pc.fill_null(pc.index_in(volume_ids, labels["volume_id"]), labels.num_rows)
    return taken(known, rows.combine_chunks()).set_column(0, VOLUME_LABELS.field(0), volume_ids)


def labelled(table: pa.Table) -> pa.ChunkedArray:
    """The volume_ids of the rows that have at least one label. table: a ledger, or schemas.VOLUME_LABELS."""
    known = pc.fill_null(pc.greater(pc.list_value_length(table["metadata"].cast(_PAIRS)), 0), False)
    for name in LABELS:
        known = pc.or_(known, pc.is_valid(table[name]))
    return table["volume_id"].filter(known)


@dataclass(frozen=True)
class _Joined:
    """volume_ids: one per row, null if it names none or several. ambiguous: number of rows that name several."""

    volume_ids: pa.Array
    ambiguous: int
    root: str | None


def _joined(columns: Mapping[str, int], table: Table, listing: Listing) -> _Joined:
    """Decide which volume each row is about.

    Paths of another machine count only if they share one root, no row contains the archive's own location, and no
    plainer name means the same volume: a table over several archives must not label one with the rows of another.
    """
    cells = [table.cells.column(columns[name]) for name in ID_COLUMNS if name in columns]
    first = pc.coalesce(*cells).combine_chunks()
    exact = pc.if_else(pc.is_in(first, listing.objects["volume_id"]), first, pa.scalar(None, pa.string()))
    left = pc.indices_nonzero(pc.is_null(exact))
    names = _names(columns, table, left)
    finder = Finder(listing, {name for row in names for name in row})
    matches = [_match(row, finder) for row in names]
    plain = {match.volume_ids[0] for match in matches if len(match.volume_ids) == 1 and match.root is None}
    named = {match.volume_ids[0] for match in matches if len(match.volume_ids) == 1 and match.root is not None}
    plain |= set(exact.filter(pc.is_in(exact, pa.array(named, pa.string()))).to_pylist())
    roots = {match.root for match in matches if match.root is not None}
    trusted = len(roots) == 1 and not any(match.located for match in matches)
    volume_ids: list[str | None] = []
    for match in matches:
        volume_id = match.volume_ids[0] if len(match.volume_ids) == 1 else None
        volume_ids.append(volume_id if match.root is None or (trusted and volume_id not in plain) else None)
    pairs = list(zip(matches, volume_ids, strict=True))
    ambiguous = sum(bool(match.volume_ids) and volume_id is None for match, volume_id in pairs)
    used = any(match.root is not None and volume_id is not None for match, volume_id in pairs)
    found = pc.replace_with_mask(exact, pc.is_null(exact), pa.array(volume_ids, pa.string()))
    return _Joined(found, ambiguous, roots.pop() if used else None)


def _names(columns: Mapping[str, int], table: Table, rows: pa.Array) -> list[list[str]]:
    """The names of their volume that some rows give. rows: numbers."""
    cells = [table.cells.column(columns[name]).take(rows).to_pylist() for name in ID_COLUMNS if name in columns]
    return [[cell for cell in row if cell] for row in zip(*cells, strict=True)]


def _match(names: Sequence[str], finder: Finder) -> Match:
    """The match of the first of a row's names that fits one volume; paths of another machine are tried last."""
    matches = [match for name in names if (match := finder.find(name)).volume_ids]
    return min(matches, key=lambda match: (len(match.volume_ids) > 1, match.root is not None), default=Match())


def _known_columns(table: Table) -> dict[str, int]:
    """Known column name -> its number. Case does not matter."""
    columns: dict[str, int] = {}
    for number, name in enumerate(table.cells.column_names):
        known = name.lower()
        if known not in (*ID_COLUMNS, *LABELS):
            continue
        if known in columns:
            raise UsageError(f"{table.name}: column {known} appears twice")
        columns[known] = number
    if not any(name in columns for name in ID_COLUMNS):
        raise UsageError(
            f"{table.name}: there is no column volume_id or path to name each row's volume; "
            f"its columns are {', '.join(table.cells.column_names)}"
        )
    return columns


def _labelled(columns: Mapping[str, int], table: Table, volume_ids: pa.Array) -> pa.Table:
    """The labels of the rows that name a volume (schemas.VOLUME_LABELS), in the order of the rows."""
    rows = table.cells.append_column("", volume_ids).filter(pc.is_valid(volume_ids))
    others = [number for number in range(len(table.cells.column_names)) if number not in columns.values()]
    parts = [VOLUME_LABELS.empty_table()]
    for part in in_pieces([rows]):
        labels = {
            name: part.column(columns[name]) if name in columns else pa.nulls(part.num_rows, pa.string())
            for name in LABELS
        }
        labels["modality"] = _modality_labels(labels["modality"])
        metadata = _maps({table.cells.column_names[number]: part.column(number) for number in others}, part.num_rows)
        parts.append(pa.table([part[""], *labels.values(), metadata], schema=VOLUME_LABELS))
    return pa.concat_tables(parts)


def _modality_labels(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column in medret's words for modalities."""
    words = pc.unique(column)
    labels = [None if word is None else modality_label(word) for word in words.to_pylist()]
    return pa.array(labels, pa.string()).take(pc.index_in(column, words))


def _maps(columns: Mapping[str, pa.ChunkedArray], rows: int) -> pa.Array:
    """One map per row: column name -> text, of the cells that are not null."""
    if not (columns and rows):
        return pa.array([[]] * rows, VOLUME_LABELS.field("metadata").type)
    valid = np.column_stack([pc.is_valid(column).to_numpy() for column in columns.values()])
    row, column = np.nonzero(valid)
    offsets = np.concatenate([[0], np.cumsum(valid.sum(axis=1))])
    texts = pa.concat_arrays([chunk for column in columns.values() for chunk in column.chunks])
    keys = pa.array(list(columns), pa.string()).take(pa.array(column))
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys, texts.take(pa.array(column * rows + row)))


def _distinct(name: str, labels: pa.Table) -> pa.Table:
    """One row per volume, sorted; raises UsageError if two rows disagree. labels: VOLUME_LABELS. name: of the table."""
    labels = in_order(labels, "volume_id")
    ids = labels["volume_id"]
    again = pc.equal(ids[1:], ids[:-1]) if len(ids) > 1 else pa.chunked_array([], pa.bool_())
    for number in pc.indices_nonzero(again).to_pylist():
        one, other = labels.slice(number, 2).to_pylist()
        if one != other:
            raise UsageError(
                f"{name}: two rows for {one['volume_id']} disagree: {_difference(one, other)}; keep one of them"
            )
    return labels.filter(pc.invert(pa.chunked_array([pa.array([False]), *again.chunks]))) if len(ids) else labels


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first column in which two rows differ, and both values."""
    values, others = ({**row, **dict(row["metadata"])} for row in (one, other))
    names = [*LABELS, *sorted(dict([*one["metadata"], *other["metadata"]]))]
    name = next(name for name in names if values.get(name) != others.get(name))
    return f"{name} is {values.get(name)!r} and {others.get(name)!r}"


def _from_descriptions(listing: Listing) -> LabelJoin:
    """Label all volumes beside or below a dataset.json by its task; the deepest file counts."""
    tasks, ignored = read_descriptions(listing.archive_uri, listing.descriptions)
    ids = listing.objects["volume_id"]
    folders = pc.if_else(pc.match_substring(ids, "/"), pc.replace_substring_regex(ids, "(?s)/.*$", ""), "")
    known = pa.array(tasks, pa.string())
    rows = pc.coalesce(pc.index_in(folders, known), pc.index_in(pa.scalar(""), known))
    named = pc.is_valid(rows)
    labels = taken(_task_labels(tasks.values()), rows.filter(named).combine_chunks())
    labels = labels.set_column(0, VOLUME_LABELS.field(0), ids.filter(named))
    source = DESCRIPTION if tasks else None
    return LabelJoin(labels, 0, len(ids) - labels.num_rows, source, ignored=ignored)


def _task_labels(tasks: Iterable[MsdTask]) -> pa.Table:
    """One row per task (schemas.VOLUME_LABELS), without ids."""
    rows = [
        {"volume_id": "", "modality": task.modality, "body_region": task.body_region, "organ": task.organ}
        | {"metadata": [("task", task.name)]}
        for task in tasks
    ]
    return pa.Table.from_pylist(rows, VOLUME_LABELS)
