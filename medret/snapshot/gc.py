"""Clean up a store: delete old snapshots, and files that no kept snapshot and no unfinished run needs.

Mark and sweep under the store's lease, so no run works at the same time. Files younger than a given age always stay: a
run whose lease lapsed may still be writing, and a reader may have just opened the previous snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from medret.errors import UsageError
from medret.snapshot.forget import Say, delete_files, finish
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import SNAPSHOT_ID, Manifest, current_id, read_manifest, snapshot_ids
from medret.snapshot.names import is_deletable, strangers
from medret.snapshot.tables import named_files, read_journal
from medret.storage import Location

RENEWING = timedelta(minutes=10)  # a younger file at the top of the store may belong to a renewal of the lease


@dataclass(frozen=True)
class GcResult:
    """What was removed, or would be removed.

    kept, dropped: snapshot ids. paths: removed files. size_bytes: their total. strangers: files that are not medret's;
    they stay.
    """

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    paths: tuple[str, ...]
    size_bytes: int
    strangers: tuple[str, ...]


def gc(
    store: Location, lease: Lease, *, keep: int, older_than: timedelta, dry_run: bool = False, say: Say = lambda _: None
) -> GcResult:
    """Remove files that are not needed, after finishing a `forget` that was stopped.

    keep: number of newest snapshots that stay, besides the live one. older_than: younger files and snapshots stay. A
    run report stays while it is younger, or while its snapshot stays. Raises CorruptError, and removes nothing, if a
    kept snapshot cannot be read: nobody could tell which files it needs.
    """
    if not dry_run:
        finish(store, lease, say)
    live = current_id(store)
    if live is None:
        raise UsageError(f"{store.uri}: nothing was ever published there")
    before = datetime.now(UTC) - older_than
    ids = snapshot_ids(store)
    newest = set(ids[-keep:]) if keep else set()
    kept = [snapshot for snapshot in ids if snapshot == live or snapshot in newest or _moment(snapshot) > before]
    manifests = {snapshot: read_manifest(store, snapshot) for snapshot in kept}
    needed = _needed(store, manifests)
    reports = tuple(f"runs/{manifest.run}-" for manifest in manifests.values())
    doomed = []
    paths = store.files()
    for path in paths:
        if path in needed or path.startswith(reports) or not is_deletable(path):
            continue
        try:
            # A file at the top of the store may belong to the lease, which this process is renewing.
            if store.modified_at(path) <= (before if "/" in path else min(before, datetime.now(UTC) - RENEWING)):
                doomed.append(path)
        except FileNotFoundError:
            continue
    # Manifests first: a snapshot without one is not listed any more when its other files go.
    doomed.sort(key=lambda path: (not path.startswith("snapshots/"), path))
    size = sum(store.size_bytes(path) for path in doomed)
    if not dry_run:
        delete_files(store, doomed, lease)
    dropped = tuple(snapshot for snapshot in ids if snapshot not in kept)
    return GcResult(tuple(kept), dropped, tuple(doomed), size, tuple(strangers(paths)))


def _needed(store: Location, manifests: Mapping[str, Manifest]) -> set[str]:
    """Return every file that a kept snapshot or the journal of an unfinished run names."""
    needed: set[str] = set()
    for snapshot_id, manifest in manifests.items():
        needed |= named_files(store, snapshot_id, manifest)
    journal = read_journal(store)
    return needed | {*journal.files["path"].to_pylist(), *journal.paths}


def _moment(snapshot_id: str) -> datetime:
    assert SNAPSHOT_ID.fullmatch(snapshot_id)
    return datetime.strptime(snapshot_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
