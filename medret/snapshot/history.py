"""The snapshots of a store, and going back to an older one."""

from __future__ import annotations

from dataclasses import dataclass

from medret.errors import BusyError, MedretError, UsageError
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import Manifest, current_id, read_manifest, snapshot_ids
from medret.snapshot.publish import make_live
from medret.storage import Location


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot in a store's history. manifest: None where it cannot be read; problem: why."""

    id: str
    live: bool
    manifest: Manifest | None
    problem: str | None = None

    @property
    def recall(self) -> dict[str, float]:
        """The lowest recall@10 of each index kind."""
        worst: dict[str, float] = {}
        for entry in self.manifest.indices if self.manifest else ():
            for kind, value in entry.recall.items():
                worst[kind] = min(value, worst.get(kind, 1.0))
        return worst


def history(store: Location) -> list[SnapshotInfo]:
    """Every whole snapshot, oldest first. Raises UsageError if there is no store."""
    live = current_id(store)
    found = []
    for snapshot_id in snapshot_ids(store):
        try:
            found.append(SnapshotInfo(snapshot_id, snapshot_id == live, read_manifest(store, snapshot_id)))
        except MedretError as error:
            found.append(SnapshotInfo(snapshot_id, snapshot_id == live, None, str(error)))
    if not found:
        raise UsageError(f"{store.uri}: no snapshot is there; `medret index ARCHIVE {store.uri}` publishes one")
    return found


def rollback(store: Location, snapshot_id: str, lease: Lease) -> str | None:
    """Make an older (or newer) snapshot live; returns the id of the one that was. Raises UsageError, CorruptError."""
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
        raise BusyError(f"snapshot {live} is no longer the live one; nothing was changed") from error
    return live
