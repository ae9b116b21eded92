"""Publish snapshots, list them, and go back to an older one.

Publishing writes tables first, then the manifest, then CURRENT: a crash before the last step leaves the old one live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from medret.embeddings.parquet import as_it_is, parquet_bytes
from medret.errors import BusyError, GateError, MedretError, UsageError
from medret.schemas import QUARANTINE
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import (
    CURRENT,
    MANIFEST,
    Counts,
    IndexEntry,
    Manifest,
    TableEntry,
    current_id,
    read_manifest,
    snapshot_folder,
    snapshot_ids,
)
from medret.snapshot.tables import write_ledger, write_table
from medret.storage import NAME_DIGITS, Location, WrittenFile


def publish(
    store: Location,
    changed: pa.Table,
    gone: Sequence[str],
    files: pa.Table,
    tombstones: pa.Table | None = None,
    *,
    parent: str | None = None,
    facts: Callable[[pa.Table], pa.Table] = as_it_is,
    **fields: Any,
) -> tuple[str, Manifest]:
    """Write a snapshot and make it live if `parent` still is live; return its id and manifest.

    changed: rows of the ledger that the parent lacks or has otherwise (schemas.LEDGER); without a parent, all rows.
    gone: ids of the parent's ledger that are no longer listed. files: schemas.FILES. tombstones: schemas.TOMBSTONES.
    parent: id of the snapshot that it was made from; None if nothing was live. facts: see write_ledger. fields: the
    manifest's other fields.
    Raises GateError if the counts do not reconcile, BusyError if another run published in the meantime; both publish
    nothing.
    """
    before = None if parent is None else read_manifest(store, parent)
    counts = fields["counts"]
    gate_counts(changed, gone, before, counts)
    ledger = write_ledger(store, before, changed, gone, facts)
    rows = sum(table.rows for table in ledger)
    if rows != counts.volumes and ledger[-1].kind == "ledger":  # with changes, only a reader of the whole can tell
        raise _not_reconciled(counts, f"ledger rows {rows}")
    snapshot_id, manifest = write_snapshot(store, ledger, files, tombstones, datetime.now(UTC), parent=parent, **fields)
    make_live(store, snapshot_id, parent)
    return snapshot_id, manifest


def write_snapshot(
    store: Location,
    ledger: Sequence[TableEntry],
    files: pa.Table,
    tombstones: pa.Table | None,
    moment: datetime,
    **fields: Any,
) -> tuple[str, Manifest]:
    """Write a snapshot without making it live; the same tables, moment and fields give the same files.

    ledger: its tables, which are in the store. For the others see `publish`.
    """
    tables = [write_table(store, "files", files.sort_by("path")), *ledger]
    if tombstones is not None and tombstones.num_rows:
        order = [("shard", "ascending"), ("volume_id", "ascending")]
        tables.append(write_table(store, "tombstones", tombstones.sort_by(order)))
    manifest = Manifest(created=moment.isoformat(timespec="seconds"), tables=tables, **fields)
    data = manifest.to_bytes()
    snapshot_id = f"{moment:%Y%m%dT%H%M%SZ}-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}"
    store.write(f"{snapshot_folder(snapshot_id)}/{MANIFEST}", data)
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


def gate_counts(changed: pa.Table, gone: Sequence[str], before: Manifest | None, counts: Counts) -> None:
    """Raise GateError unless each listed object has one outcome, the changes agree, and one object is embedded.

    The changes since the snapshot `before` do not say which of the changed volumes it had: at least none, at most all
    that stay.
    """
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    had = before.counts.volumes if before else 0
    ids = changed["volume_id"]
    if not len(gone) and pc.all(pc.less(ids.slice(0, max(0, len(ids) - 1)), ids.slice(1)), min_count=0).as_py():
        named = len(ids)
    else:
        named = len(pa.chunked_array([*ids.chunks, pa.array(gone, pa.string())], pa.string()).unique())
    new = counts.volumes - (had - len(gone))
    possible = 0 <= new <= changed.num_rows <= counts.volumes
    if not counts.reconciled or not possible or named != changed.num_rows + len(gone):
        raise _not_reconciled(
            counts,
            f"volumes before {had}, changed or new {changed.num_rows}, gone {len(gone)}, distinct volumes {named}",
        )
    if counts.embedded + counts.unchanged == 0:
        raise GateError(
            f"refused to publish: none of the {counts.volumes} volumes could be embedded, so there is nothing to "
            "search; see the quarantine table for the reasons"
        )


def _not_reconciled(counts: Counts, found: str) -> GateError:
    return GateError(
        f"refused to publish: the counts do not reconcile ({counts}; {found}); the previous snapshot stays live"
    )


def worst_recall(entries: Sequence[IndexEntry]) -> dict[str, float]:
    """Lowest recall@10 of each index kind over the indices of a snapshot."""
    worst: dict[str, float] = {}
    for entry in entries:
        for kind, value in entry.recall.items():
            worst[kind] = min(value, worst.get(kind, 1.0))
    return worst


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot in a store's history. manifest: None if it cannot be read; problem: says why."""

    id: str
    live: bool
    manifest: Manifest | None
    problem: str | None = None

    @property
    def recall(self) -> dict[str, float]:
        """See `worst_recall`."""
        return worst_recall(self.manifest.indices if self.manifest else ())


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
