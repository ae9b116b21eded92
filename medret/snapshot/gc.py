"""Cleaning up: old snapshots, and what no kept snapshot and no unfinished run needs.

Mark and sweep under the store's lease, so that no run works meanwhile. What is younger than a stated age stays,
whatever it is: a run whose lease lapsed may still be writing, and a reader may just have opened the snapshot before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.compute as pc

from medret.errors import UsageError
from medret.snapshot.forget import Say, finish
from medret.snapshot.journal import read_journal
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import SNAPSHOT_ID, current_id, read_files, read_manifest, snapshot_ids
from medret.snapshot.names import SINGLE, is_temporary, kind_of, strangers
from medret.storage import Location

RENEWING = timedelta(minutes=10)


@dataclass(frozen=True)
class GcResult:
    """What was removed, or would be. kept, dropped: snapshot ids. paths: files. size_bytes: their sum.

    strangers: files that are not medret's, which stay.
    """

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    paths: tuple[str, ...]
    size_bytes: int
    strangers: tuple[str, ...]


def gc(
    store: Location, lease: Lease, *, keep: int, older_than: timedelta, dry_run: bool = False, say: Say = lambda _: None
) -> GcResult:
    """Remove what is not needed, and finish a `forget` that was stopped.

    keep: so many of the newest snapshots stay, beside the live one. older_than: what is younger stays. Run reports stay
    as long as they are younger, or their snapshot stays. Raises CorruptError, and removes nothing, if a kept snapshot
    cannot be read: what it needs would not be known.
    """
    if not dry_run:
        finish(store, lease, say)
    live = current_id(store)
    if live is None:
        raise UsageError(f"{store.uri}: nothing was ever published there")
    before = datetime.now(UTC) - older_than
    every = snapshot_ids(store)
    newest = set(every[len(every) - keep :]) if keep else set()
    kept = [one for one in every if one == live or one in newest or _moment(one) > before]
    needed = _needed(store, kept)
    runs = tuple(f"runs/{read_manifest(store, one).run}-" for one in kept)
    doomed = []
    every_file = store.files()
    for path in every_file:
        if path in needed or path.startswith(runs) or not _is_ours(path):
            continue
        if any(path.startswith(f"snapshots/{one}/") for one in kept):
            continue
        try:
            # Beside the folders: perhaps of the lease, which this very process renews.
            if store.modified_at(path) <= (before if "/" in path else min(before, datetime.now(UTC) - RENEWING)):
                doomed.append(path)
        except FileNotFoundError:
            continue
    # Manifests first: a snapshot that is being removed is none any more before its files go.
    doomed.sort(key=lambda path: (not path.startswith("snapshots/"), not path.endswith("manifest.json"), path))
    size = sum(store.size_bytes(path) for path in doomed)
    if not dry_run:
        for number, path in enumerate(doomed):
            if number % 100 == 0:
                lease.check()
            store.delete(path)
    dropped = tuple(one for one in every if one not in kept)
    return GcResult(tuple(kept), dropped, tuple(doomed), size, tuple(strangers(every_file)))


def _is_ours(path: str) -> bool:
    """Whether it is medret's to delete: in its folders, and of its form."""
    return is_temporary(path) or kind_of(path) not in (None, *SINGLE)


def _needed(store: Location, kept: list[str]) -> set[str]:
    """Every file that a kept snapshot consists of, or that the journal of an unfinished run names."""
    needed: set[str] = set()
    for snapshot_id in kept:
        files = read_files(store, snapshot_id, read_manifest(store, snapshot_id))
        needed |= set(files["path"].to_pylist())
    journal = read_journal(store)
    if journal.paths:
        named = journal.files.filter(pc.is_valid(journal.files["path"]))
        needed |= set(named["path"].to_pylist())
        needed |= set(journal.paths)
    return needed


def _moment(snapshot_id: str) -> datetime:
    assert SNAPSHOT_ID.fullmatch(snapshot_id)
    return datetime.strptime(snapshot_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
