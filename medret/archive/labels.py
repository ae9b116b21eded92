"""Labels of the volumes of a listing: from a table, from the names in their paths, and from files beside them.

`medret.archive.label_origins` says which origin counts before which.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive import label_origins as origins
from medret.archive.listing import DATA_SET, DESCRIPTION, PARTICIPANTS, Listing
from medret.archive.msd import msd_labels, read_tasks
from medret.archive.path_labels import bids_labels, path_labels, read_participants
from medret.archive.table_labels import join_table
from medret.schemas import LABELS, PART_ROWS, VOLUME_LABELS, taken

_NO_LABELS = pa.Table.from_pylist([{"volume_id": "", "metadata": [], "origins": []}], VOLUME_LABELS)


@dataclass(frozen=True)
class LabelJoin:
    """Labels joined to the volumes of a listing.

    labels: those of the volumes that have some, or a row in the table (schemas.VOLUME_LABELS), sorted by volume_id.
    unmatched_rows: rows that do not name one volume of the listing; ambiguous_rows of them fit several equally well.
    source: URI of the table; None without one. table_volumes: those that have a row in it; None: all of `labels`.
    unmatched_example: the first unmatched name. volume_example: the first volume's id.
    root: for a table from another machine, the folder before the ids there.
    series: volumes that are series in folders, whose tags give labels when they are read.
    origins: see `label_origins.counts`.
    ignored: path -> reason, for dataset.json files of other tools and participants.tsv files that cannot be read.
    """

    labels: pa.Table
    unmatched_rows: int
    unlabelled_volumes: int
    source: str | None = None
    ambiguous_rows: int = 0
    unmatched_example: str | None = None
    volume_example: str | None = None
    root: str | None = None
    table_volumes: int | None = None
    series: int = 0
    origins: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The counts for reports, without names, which may be those of patients.

        matched: volumes with labels. from_bids, ...: those with labels that stand in no table.
        """
        found = {f"from_{origin}": each["volumes"] for origin, each in self.origins.items() if origin != origins.TABLE}
        return found | {
            "source": self.source,
            "matched": self.labels.num_rows,
            "unmatched_rows": self.unmatched_rows,
            "ambiguous_rows": self.ambiguous_rows,
            "unlabelled_volumes": self.unlabelled_volumes,
            "ignored_files": len(self.ignored),
        }

    @property
    def matched_volumes(self) -> int:
        """Number of volumes that have a row in the table."""
        return self.labels.num_rows if self.table_volumes is None else self.table_volumes

    @property
    def mismatch(self) -> str | None:
        """Why the table is useless: none of its rows matches a volume. None if one does."""
        if self.matched_volumes or self.source is None or self.volume_example is None:
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
    """The labels of the listed volumes.

    table_uri: of a CSV or Parquet file; None: there is none.

    Raises UsageError for a table that `table_labels.join_table` refuses. `LabelJoin.mismatch` tells whether none of its
    rows matches a volume.
    """
    objects = listing.objects
    table = join_table(table_uri, listing) if table_uri is not None else None
    named, ignored = _from_paths(listing)
    tables = [table.labels, *named] if table else named
    labels = tables[0] if len(tables) == 1 else origins.merged(objects["volume_id"], tables)
    join = LabelJoin(
        labels,
        table.unmatched_rows if table else 0,
        objects.num_rows - labels.num_rows,
        volume_example=objects["volume_id"][0].as_py() if objects.num_rows else None,
        series=len(objects) - objects["parts"].null_count,
        origins=origins.counts(labels),
        ignored=ignored,
    )
    if table is None:
        return join
    return replace(
        join,
        source=table.name,
        table_volumes=table.labels.num_rows,
        ambiguous_rows=table.ambiguous_rows,
        unmatched_example=table.unmatched_example,
        root=table.root,
    )


def labels_of(volume_ids: pa.ChunkedArray, labels: pa.Table) -> pa.Table:
    """The labels of these volumes, one row per id (schemas.VOLUME_LABELS); nulls and no metadata for those without."""
    known = pa.concat_tables([labels, _NO_LABELS])
    rows = pc.fill_null(pc.index_in(volume_ids, labels["volume_id"]), labels.num_rows)
    return taken(known, rows.combine_chunks()).set_column(0, VOLUME_LABELS.field(0), volume_ids)


def labelled(table: pa.Table) -> pa.ChunkedArray:
    """The volume_ids of the rows that have at least one label. table: a ledger, or schemas.VOLUME_LABELS."""
    known = pc.fill_null(pc.greater(pc.list_value_length(table["metadata"].cast(origins.PAIRS)), 0), False)
    for name in LABELS:
        known = pc.or_(known, pc.is_valid(table[name]))
    return table["volume_id"].filter(known)


def _from_paths(listing: Listing) -> tuple[list[pa.Table], dict[str, str]]:
    """The labels that paths, and files beside them, give (schemas.VOLUME_LABELS); path -> why a file is ignored."""
    ids = listing.objects["volume_id"]
    files: dict[str, list[str]] = {name: [] for name in (DESCRIPTION, DATA_SET, PARTICIPANTS)}
    for path in listing.descriptions:
        files[posixpath.basename(path)].append(path)
    tasks, ignored = read_tasks(listing.archive_uri, files[DESCRIPTION])
    participants, others = read_participants(listing.archive_uri, files[PARTICIPANTS])
    folders = sorted({posixpath.dirname(path) for path in (*files[DATA_SET], *files[PARTICIPANTS])})
    found = [
        *((origins.BIDS, each) for each in bids_labels(ids, folders, participants)),
        *((origins.MSD, each) for each in msd_labels(ids, tasks)),
        *((origins.PATH, each) for each in path_labels(ids)),
    ]
    shared = _shared_subjects([each for _, each in found])
    tables = [_labels(each, shared, origin) for origin, each in found if each.num_rows]
    return tables, ignored | others


def _shared_subjects(tables: list[pa.Table]) -> pa.Array:
    """The subjects that several data sets name, and that are not the same person. tables: see `bids_labels`."""
    named = [table.select(["data_set", "subject"]) for table in tables if "data_set" in table.column_names]
    pairs = pa.concat_tables(named).group_by(["data_set", "subject"]).aggregate([]) if named else None
    if pairs is None:
        return pa.array([], pa.string())
    counts = pairs.group_by(["subject"]).aggregate([("data_set", "count")])
    return counts["subject"].filter(pc.greater(counts["data_set_count"], 1)).combine_chunks()


def _labels(table: pa.Table, shared: pa.Array, origin: str) -> pa.Table:
    """Labels (schemas.VOLUME_LABELS) from a table of text. shared: subjects that get their data set's name as well."""
    parts = [VOLUME_LABELS.empty_table()]
    for at in range(0, table.num_rows, PART_ROWS):
        part = table.slice(at, PART_ROWS)
        columns = {name: part[name].combine_chunks() for name in part.column_names}
        ids, data_set = columns.pop("volume_id"), columns.pop("data_set", None)
        if data_set is not None:
            apart = pc.and_(pc.is_in(columns["subject"], shared), pc.not_equal(data_set, ""))
            whole = pc.binary_join_element_wise(data_set, columns["subject"], "/")
            columns["subject"] = pc.if_else(apart, whole, columns["subject"])
        if "modality" in columns:  # a series says itself of which modality it is
            is_file = pc.match_substring_regex(ids, r"(?i)\.nii(\.gz)?$")
            columns["modality"] = pc.if_else(is_file, columns["modality"], None)
        parts.append(origins.from_columns(ids, columns, origin))
    return pa.concat_tables(parts)
