"""Publishing: tables first, then the manifest, then CURRENT. A crash before that leaves the old snapshot live."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from medret.embeddings.shards import parquet_bytes
from medret.errors import GateError
from medret.schemas import FILES, LEDGER, QUARANTINE
from medret.snapshot.manifest import CURRENT, Manifest, TableEntry, TableKind, snapshot_folder
from medret.storage import NAME_DIGITS, Location, WrittenFile

LEDGER_ROWS = 100_000


def publish(store: Location, ledger: pa.Table, files: pa.Table, **fields: Any) -> tuple[str, Manifest]:
    """Write a snapshot and make it live; returns its id and manifest.

    ledger: schemas.LEDGER. files: schemas.FILES. fields: the manifest's other fields.
    Raises GateError, and publishes nothing, if the counts do not reconcile.
    """
    gate_counts(ledger, fields["counts"])
    moment = datetime.now(UTC)
    ledger = ledger.cast(LEDGER).sort_by("volume_id")
    pieces: list[tuple[TableKind, pa.Table]] = [("files", files.cast(FILES).sort_by("path"))]
    pieces += [("ledger", ledger.slice(at, LEDGER_ROWS)) for at in range(0, ledger.num_rows, LEDGER_ROWS)]
    # The folder's name holds the manifest's sha256, so everything is made before anything is written.
    tables = [(_table_entry(kind, piece), piece) for kind, piece in pieces]
    manifest = Manifest(created=moment.isoformat(timespec="seconds"), tables=[entry for entry, _ in tables], **fields)
    data = manifest.to_bytes()
    snapshot_id = f"{moment:%Y%m%dT%H%M%SZ}-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}"
    folder = snapshot_folder(snapshot_id)
    for entry, piece in tables:
        store.write(f"{folder}/{entry.path}", parquet_bytes(piece))
    store.write(f"{folder}/manifest.json", data)
    store.write(CURRENT, f"{snapshot_id}\n".encode())
    return snapshot_id, manifest


def write_quarantine(store: Location, run: str, quarantine: pa.Table) -> WrittenFile:
    """Write a run's quarantine table (schemas.QUARANTINE)."""
    return store.write_named("quarantine", run, ".parquet", parquet_bytes(quarantine.cast(QUARANTINE)))


def _table_entry(kind: TableKind, table: pa.Table) -> TableEntry:
    data = parquet_bytes(table)
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{kind}-{sha256[:NAME_DIGITS]}.parquet"
    return TableEntry(path=path, kind=kind, sha256=sha256, size_bytes=len(data), rows=table.num_rows)


def gate_counts(ledger: pa.Table, counts: Any) -> None:
    """Invariant 1: every listed object ends in exactly one outcome, and the ledger says the same."""
    volumes = counts.listed - counts.skipped
    ids = len(ledger["volume_id"].unique())
    if not counts.reconciled or ledger.num_rows != volumes or ids != volumes:
        raise GateError(
            f"refused to publish: the counts do not reconcile ({counts}; ledger rows {ledger.num_rows}, "
            f"distinct volumes {ids}); the previous snapshot stays live"
        )
    if counts.embedded + counts.unchanged == 0:
        raise GateError(
            f"refused to publish: none of the {volumes} volumes could be embedded, so there is nothing to search; "
            "see the quarantine table for the reasons"
        )
