"""Publish snapshots, list them, and go back to an older one.

Publishing writes tables first, then the manifest, then CURRENT: a crash before the last step leaves the old one live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from medret.embeddings.shards import parquet_bytes
from medret.errors import BusyError, GateError, MedretError, UsageError
from medret.schemas import FILES, LEDGER, QUARANTINE, TOMBSTONES, in_order, in_pieces
from medret.snapshot.changes import collected, merged
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import (
    CURRENT,
    MANIFEST,
    Manifest,
    TableEntry,
    TableKind,
    current_id,
    read_ledger,
    read_manifest,
    snapshot_folder,
    snapshot_ids,
)
from medret.storage import NAME_DIGITS, Location, WrittenFile


def publish(
    store: Location,
    changed: pa.Table,
    gone: Sequence[str],
    files: pa.Table,
    tombstones: pa.Table | None = None,
    *,
    parent: str | None = None,
    **fields: Any,
) -> tuple[str, Manifest]:
    """Write a snapshot and make it live if `parent` still is live; return its id and manifest.

    changed: rows of the ledger that the parent lacks or has otherwise (schemas.LEDGER); without a parent, all rows.
    gone: ids of the parent's ledger that are no longer listed. files: schemas.FILES. tombstones: schemas.TOMBSTONES.
    parent: id of the snapshot that it was made from; None if nothing was live. fields: the manifest's other fields.
    Raises GateError if the counts do not reconcile, BusyError if another run published in the meantime; both publish
    nothing.
    """
    before = [LEDGER.empty_table()] if parent is None else [read_ledger(store, parent, read_manifest(store, parent))]
    ledger = pa.concat_tables(merged(before, collected(LEDGER.empty_table(), changed, gone)))
    gate_counts(ledger, fields["counts"])
    moment = datetime.now(UTC)
    snapshot_id, manifest = write_snapshot(store, ledger, files, tombstones, moment, parent=parent, **fields)
    make_live(store, snapshot_id, parent)
    return snapshot_id, manifest


def write_snapshot(
    store: Location, ledger: pa.Table, files: pa.Table, tombstones: pa.Table | None, moment: datetime, **fields: Any
) -> tuple[str, Manifest]:
    """Write a snapshot's folder without making it live; the same tables, moment and fields give the same folder."""
    ledger = in_order(ledger.cast(LEDGER), "volume_id")
    pieces: list[tuple[TableKind, pa.Table]] = [("files", files.cast(FILES).sort_by("path"))]
    pieces += [("ledger", piece) for piece in in_pieces([ledger])]
    if tombstones is not None and tombstones.num_rows:
        order = [("shard", "ascending"), ("volume_id", "ascending")]
        pieces.append(("tombstones", tombstones.cast(TOMBSTONES).sort_by(order)))
    # The folder's name holds the manifest's sha256, so all bytes are made before any file is written.
    contents = [parquet_bytes(piece) for _, piece in pieces]
    entries = [
        _table_entry(kind, content, piece.num_rows) for (kind, piece), content in zip(pieces, contents, strict=True)
    ]
    manifest = Manifest(created=moment.isoformat(timespec="seconds"), tables=entries, **fields)
    data = manifest.to_bytes()
    snapshot_id = f"{moment:%Y%m%dT%H%M%SZ}-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}"
    folder = snapshot_folder(snapshot_id)
    for entry, content in zip(entries, contents, strict=True):
        store.write(f"{folder}/{entry.path}", content)
    store.write(f"{folder}/{MANIFEST}", data)
    return snapshot_id, manifest


def make_live(store: Location, snapshot_id: str, expected: str | None) -> None:
    """Point CURRENT to a snapshot; raise BusyError, and change nothing, if it does not name `expected` any more."""
    before = None if expected is None else f"{expected}\n".encode()
    if not store.compare_and_swap(CURRENT, before, f"{snapshot_id}\n".encode()):
        raise BusyError(
            f"not published: {store.uri_of(CURRENT)} names {current_id(store)}, but it named {expected} when this "
            "run started: another run has published in the meantime; run again"
        )


def write_quarantine(store: Location, run: str, quarantine: pa.Table) -> WrittenFile:
    """Write a run's quarantine table (schemas.QUARANTINE)."""
    return store.write_content_addressed("quarantine", run, ".parquet", parquet_bytes(quarantine.cast(QUARANTINE)))


def _table_entry(kind: TableKind, data: bytes, rows: int) -> TableEntry:
    sha256 = hashlib.sha256(data).hexdigest()
    return TableEntry(
        path=f"{kind}-{sha256[:NAME_DIGITS]}.parquet", kind=kind, sha256=sha256, size_bytes=len(data), rows=rows
    )


def gate_counts(ledger: pa.Table, counts: Any) -> None:
    """Raise GateError unless each listed object has one outcome, the ledger agrees, and at least one is embedded."""
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


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot in a store's history. manifest: None if it cannot be read; problem: says why."""

    id: str
    live: bool
    manifest: Manifest | None
    problem: str | None = None

    @property
    def recall(self) -> dict[str, float]:
        """Lowest recall@10 of each index kind."""
        worst: dict[str, float] = {}
        for entry in self.manifest.indices if self.manifest else ():
            for kind, value in entry.recall.items():
                worst[kind] = min(value, worst.get(kind, 1.0))
        return worst


def history(store: Location) -> list[SnapshotInfo]:
    """Return every complete snapshot, oldest first. Raises UsageError if there is none."""
    live = current_id(store)
    snapshots = []
    for snapshot_id in snapshot_ids(store):
        try:
            snapshots.append(SnapshotInfo(snapshot_id, snapshot_id == live, read_manifest(store, snapshot_id)))
        except MedretError as error:
            snapshots.append(SnapshotInfo(snapshot_id, snapshot_id == live, None, str(error)))
    if not snapshots:
        raise UsageError(f"{store.uri} has no snapshot; `medret index ARCHIVE {store.uri}` publishes one")
    return snapshots


def rollback(store: Location, snapshot_id: str, lease: Lease) -> str | None:
    """Make an older or newer snapshot live; return the id of the previous one. Raises UsageError, CorruptError."""
    if snapshot_id not in snapshot_ids(store):
        raise UsageError(f"{store.uri} has no snapshot '{snapshot_id}'; `medret snapshots {store.uri}` lists them")
    read_manifest(store, snapshot_id)
    live = current_id(store)
    if live == snapshot_id:
        raise UsageError(f"snapshot {snapshot_id} is live already")
    lease.check()
    try:
        make_live(store, snapshot_id, live)
    except BusyError as error:
        raise BusyError(f"snapshot {live} is not live any more; nothing was changed") from error
    return live
