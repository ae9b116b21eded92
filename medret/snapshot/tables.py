"""The tables of a snapshot: written once, under the checksum of their content, and checked whenever they are read.

Snapshots share tables: a run over a large archive writes only the changes since the base of the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from medret.embeddings.parquet import as_corrupt, parquet_bytes, read_parquet
from medret.schemas import LEDGER, TOMBSTONES, in_pieces
from medret.snapshot.changes import collected, merged, needs_base
from medret.snapshot.manifest import MANIFEST, Manifest, TableEntry, TableKind, snapshot_folder
from medret.snapshot.names import SCHEMAS, check_table
from medret.storage import Location, read_checked

FOLDER = "tables"
TABLE_BYTES = 1 << 31


def write_table(store: Location, kind: TableKind, table: pa.Table) -> TableEntry:
    """Write a table; the same rows in the same order give the same file."""
    data = parquet_bytes(table.cast(SCHEMAS[kind]))
    written = store.write_content_addressed(FOLDER, kind, ".parquet", data)
    return TableEntry(kind=kind, rows=table.num_rows, **vars(written))


def write_ledger(store: Location, parent: Manifest | None, changed: pa.Table, gone: Sequence[str]) -> list[TableEntry]:
    """Write the ledger that follows the parent's: its changes, or a new base (see `needs_base`), part by part.

    changed: rows that the parent lacks or has otherwise (schemas.LEDGER). gone: ids of the parent that go. Returns the
    tables of the new ledger.
    """
    base = parent.tables_of("ledger") if parent else []
    changes = collected(_changes(store, parent) if parent else LEDGER.empty_table(), changed, gone)
    if needs_base(sum(table.rows for table in base), changes.num_rows):
        parts = _tables(store, parent, "ledger") if parent else [LEDGER.empty_table()]
        return [write_table(store, "ledger", piece) for piece in in_pieces(merged(parts, changes))]
    return [*base, *([write_table(store, "changes", changes)] if changes.num_rows else [])]


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
