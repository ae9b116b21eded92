"""The tables of a store, checked whenever they are read: those of snapshots, and the journal of unfinished runs.

Each is written once, under the checksum of its content, and snapshots share them. A run over a large archive changes
few rows: so snapshots share a base of the ledger, and each has one table of everything that changed since the base was
written. Both tables have schemas.LEDGER and are sorted by volume_id. A row of the changes replaces the base's row; one
with the status GONE hides it.

The journal is work that a run has stored before it publishes. When a group of volumes is embedded and its Parquet files
are in the store, one small file says so: `journal/<shard key>-<sha256[:16]>.parquet` holds their ledger rows and, in
its schema's metadata, the rows of FILES. A later run reuses the volumes that still match the archive and embeds only
the rest. Publishing clears the journal, except for the work of runs with other recipes.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from medret.embeddings.parquet import as_corrupt, as_it_is, parquet_bytes, read_parquet
from medret.errors import CorruptError
from medret.schemas import FILES, GONE, LEDGER, PART_ROWS, TOMBSTONES, in_order, in_pieces
from medret.snapshot.manifest import MANIFEST, Manifest, TableEntry, TableKind, snapshot_folder
from medret.snapshot.names import SCHEMAS, check_table, of_kinds
from medret.storage import NAME_DIGITS, Location, read_checked

FOLDER = "tables"
TABLE_BYTES = 1 << 31

BASE_SHARE = 16  # a new base is written when more than one row in so many has changed

JOURNAL_FOLDER = "journal"
REQUESTS = 16  # for journal entries, at the same time
FILES_KEY = b"medret.files"


def write_table(
    store: Location, kind: TableKind, table: pa.Table, filled: Callable[[pa.Table], pa.Table] = as_it_is
) -> TableEntry:
    """Write a table; the same rows in the same order give the same file. filled: see parquet_bytes."""
    data = parquet_bytes(table.cast(SCHEMAS[kind]), filled)
    written = store.write_content_addressed(FOLDER, kind, ".parquet", data)
    return TableEntry(kind=kind, rows=table.num_rows, **vars(written))


def write_ledger(
    store: Location,
    parent: Manifest | None,
    changed: pa.Table,
    gone: Sequence[str],
    facts: Callable[[pa.Table], pa.Table] = as_it_is,
) -> list[TableEntry]:
    """Write the ledger that follows the parent's: its changes, or a new base (see `needs_base`), part by part.

    changed: rows that the parent lacks or has otherwise (schemas.LEDGER). gone: ids of the parent that go. facts:
    fills in the facts of some rows. Returns the tables of the new ledger.
    """
    base = parent.tables_of("ledger") if parent else []
    changes = collected(_changes(store, parent) if parent else LEDGER.empty_table(), changed, gone)
    if needs_base(sum(table.rows for table in base), changes.num_rows):
        parts = _tables(store, parent, "ledger") if parent else [LEDGER.empty_table()]
        return [write_table(store, "ledger", piece, facts) for piece in in_pieces(merged(parts, changes))]
    return [*base, *([write_table(store, "changes", changes, facts)] if changes.num_rows else [])]


def read_files(store: Location, snapshot_id: str, manifest: Manifest) -> pa.Table:
    """Read the FILES table: every file of the snapshot except its manifest and its tables."""
    return _joined(snapshot_id, _tables(store, manifest, "files"))


def read_tombstones(store: Location, snapshot_id: str, manifest: Manifest) -> pa.Table:
    """Read the TOMBSTONES table; it has no rows if the snapshot has no such table."""
    return _joined(snapshot_id, [*_tables(store, manifest, "tombstones")] or [TOMBSTONES.empty_table()])


def named_files(store: Location, snapshot_id: str, manifest: Manifest) -> set[str]:
    """Return the paths of all files of a snapshot, its manifest and its tables included."""
    files = read_files(store, snapshot_id, manifest)["path"].to_pylist()
    return {f"{snapshot_folder(snapshot_id)}/{MANIFEST}", *(table.path for table in manifest.tables), *files}


def read_ledger(store: Location, snapshot_id: str, manifest: Manifest, columns: list[str] | None = None) -> pa.Table:
    """Read the ledger (schemas.LEDGER), or some of its columns, in volume_id order."""
    return _joined(snapshot_id, ledger_parts(store, snapshot_id, manifest, columns))


def ledger_parts(
    store: Location, snapshot_id: str, manifest: Manifest, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Read the ledger as `read_ledger` does, but one part after the other: a large one need not fit into memory."""
    needed = None if columns is None else list(dict.fromkeys([*columns, "volume_id", "status"]))
    rows = 0
    with as_corrupt(f"the ledger of {snapshot_folder(snapshot_id)}"):
        for part in merged(_tables(store, manifest, "ledger", needed), _changes(store, manifest, needed)):
            rows += part.num_rows
            yield part if columns is None else part.select(columns)
        if rows != manifest.counts.volumes:
            raise ValueError(f"it has {rows} rows, the counts say {manifest.counts.volumes}")


def read_table(store: Location, entry: TableEntry, columns: list[str] | None = None) -> pa.Table:
    """Read and check one table, or some of its columns; raises CorruptError."""
    name = store.uri_of(entry.path)
    data = read_checked(store, entry.path, entry.sha256, TABLE_BYTES)
    fields = [field for field in SCHEMAS[entry.kind] if columns is None or field.name in columns]
    table = read_parquet(data, columns, name=name, fields=fields)
    with as_corrupt(name):
        if table.num_rows != entry.rows:
            raise ValueError(f"it has {table.num_rows} rows, the manifest says {entry.rows}")
        check_table(entry.kind, table)
    return table


def _tables(
    store: Location, manifest: Manifest, kind: TableKind, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    return (read_table(store, entry, columns) for entry in manifest.tables_of(kind))


def _changes(store: Location, manifest: Manifest, columns: list[str] | None = None) -> pa.Table:
    """Read the changes since the base of the ledger; no rows if there are none."""
    return next(_tables(store, manifest, "changes", columns), LEDGER.empty_table().select(columns or LEDGER.names))


def _joined(snapshot_id: str, tables: Iterable[pa.Table]) -> pa.Table:
    with as_corrupt(snapshot_folder(snapshot_id)):
        return pa.concat_tables(tables)


def needs_base(base_rows: int, changed_rows: int) -> bool:
    """Whether a new base is written: the old one fits one file, or more than a sixteenth of its rows have changed."""
    return base_rows <= PART_ROWS or BASE_SHARE * changed_rows > base_rows


def collected(changes: pa.Table, changed: pa.Table, gone: Sequence[str]) -> pa.Table:
    """Add a run's changes to those since the base.

    changed: rows that are new or replace others (schemas.LEDGER). gone: ids of volumes that the run removes.
    """
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    ids = pa.array(gone, pa.string())
    nothing = {"uri": "", "size_bytes": 0, "status": GONE, "slices": 0}
    hidden = pa.Table.from_pylist([{"volume_id": volume_id, **nothing} for volume_id in gone], LEDGER)
    if changes.num_rows:
        replaced = pa.chunked_array([*changed["volume_id"].chunks, ids], pa.string())
        changes = changes.filter(pc.invert(pc.is_in(changes["volume_id"], value_set=replaced)))
    return in_order(pa.concat_tables([changes, changed.cast(LEDGER), hidden]), "volume_id")


def merged(base: Iterable[pa.Table], changes: pa.Table) -> Iterator[pa.Table]:
    """Yield the ledger in parts, in volume_id order.

    base: its parts. changes: the rows since then. Both need volume_id and status; other columns are optional. Raises
    ValueError if the parts overlap.
    """
    import pyarrow.compute as pc

    ids, at, last = changes["volume_id"], 0, ""
    for part in base:
        end = at
        if part.num_rows:
            if part["volume_id"][0].as_py() <= last:
                raise ValueError(f"the volume ids are not in order, or not unique, after {last[:200]!r}")
            last = part["volume_id"][-1].as_py()
            end = bisect_right(ids, last, at, key=lambda volume_id: volume_id.as_py())
        yield part if end == at else _replaced(part, changes.slice(at, end - at))
        at = end
    if at < len(ids):
        rest = changes.slice(at)
        here = pc.not_equal(rest["status"], GONE)
        yield rest if pc.all(here).as_py() else rest.filter(here)  # all rows of a new store come from here: no copy


def _replaced(part: pa.Table, changes: pa.Table) -> pa.Table:
    """Merge changes into one part. Few rows change, so runs of rows are joined, which is faster than taking rows."""
    import pyarrow.compute as pc

    both = pa.concat_tables([part, changes])
    stays = pc.invert(pc.is_in(part["volume_id"], value_set=changes["volume_id"]))
    kept = np.concatenate([mask.to_numpy() for mask in (stays, pc.not_equal(changes["status"], GONE))])
    order = pc.sort_indices(both["volume_id"]).to_numpy().astype(np.int64)
    order = order[kept[order]]
    bounds = [*np.flatnonzero(np.diff(order, prepend=-2) != 1), len(order)]
    runs = [both.slice(order[begin], end - begin) for begin, end in pairwise(bounds)]
    return pa.concat_tables([part.schema.empty_table(), *runs]).combine_chunks()


@dataclass(frozen=True)
class Journal:
    """The readable entries of a store's journal.

    ledger: all their rows, schemas.LEDGER. files: schemas.FILES. entries: path and ledger rows of each.
    """

    ledger: pa.Table
    files: pa.Table
    paths: tuple[str, ...]
    entries: tuple[tuple[str, pa.Table], ...] = ()


def write_entry(store: Location, shard: str, ledger: pa.Table, files: pa.Table) -> None:
    """Add the journal entry of a group of volumes. Their vectors must already be in the store."""
    listed = json.dumps(files.to_pylist()).encode()
    table = ledger.cast(LEDGER).replace_schema_metadata({FILES_KEY: listed})
    store.write_content_addressed(JOURNAL_FOLDER, shard, ".parquet", parquet_bytes(table))


def read_journal(store: Location) -> Journal:
    """Read what unfinished runs left. A damaged entry counts as not written: its volumes are embedded again."""
    paths, entries, files = journal_paths(store), [], [FILES.empty_table()]
    with ThreadPoolExecutor(REQUESTS) as pool:
        for path, entry in zip(paths, pool.map(lambda path: read_entry(store, path), paths), strict=True):
            if entry is not None:
                entries.append((path, entry[0]))
                files.append(entry[1])
    ledger = pa.concat_tables([LEDGER.empty_table(), *(rows for _, rows in entries)])
    return Journal(ledger, pa.concat_tables(files), tuple(path for path, _ in entries), tuple(entries))


def clear_journal(store: Location, keep: Collection[str] = ()) -> None:
    """Clear the journal except `keep`: a published snapshot holds the same, or no run can use them any more."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(store.delete, (path for path in journal_paths(store) if path not in keep)))


def journal_paths(store: Location) -> list[str]:
    """Return the paths of all journal entries, also of damaged ones; other files in the folder do not count."""
    return of_kinds(store.files(JOURNAL_FOLDER), "journal")


def read_entry(store: Location, path: str) -> tuple[pa.Table, pa.Table] | None:
    """Read the ledger and files of one journal entry; None if it is damaged or was removed."""
    try:
        data = store.read(path)
        if not is_named_after(path, data):
            return None
        table = read_parquet(data, name=path, fields=list(LEDGER))
        with as_corrupt(path):
            files = pa.Table.from_pylist(json.loads((table.schema.metadata or {})[FILES_KEY]), schema=FILES)
            ledger = table.replace_schema_metadata(None).cast(LEDGER)
            check_table("files", files)
            check_table("journal", ledger)
        return ledger, files
    except (FileNotFoundError, CorruptError):
        return None


def is_named_after(path: str, data: bytes) -> bool:
    """Whether a file's name ends in the sha256 of its content."""
    return path.rpartition(".")[0].endswith(f"-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}")
