"""Remove from a store what no kept snapshot needs (gc), and volumes, such as those of a patient who withdrew (forget).

Both work under the store's lease, so no run works at the same time. gc marks and sweeps. Files younger than a given age
always stay: a run whose lease lapsed may still be writing, and a reader may have just opened the previous snapshot.

forget leaves no vector and no mention of a volume. Files never change. So every file that holds something of the
volumes is written again without it, as a new file, and every snapshot is written again over the new files. CURRENT
moves to the new live snapshot, and the old files are deleted. STORE/FORGETTING says what is to be forgotten before
anything else is written, so after a crash the next `forget`, `index` or `gc` finishes the work:

    {"volumes": ["<sha256 of a volume's id>"], "snapshots": {"<old id>": "<new id>"}, "doomed": ["<path>"], ...}

The note does not hold the ids themselves. At first it names only the volumes: new files are being written and nothing
is deleted, so the tables still tell which ids these are. When all new files are in the store, the note says what they
replace; from then on, finishing needs no id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from medret.errors import CorruptError, MedretError, UsageError, VersionError
from medret.snapshot.erase import (
    Erasure,
    erase_indices,
    erase_journal,
    erase_reports,
    erase_tables,
    parents_first,
    rewrite_snapshot,
)
from medret.snapshot.files import PREVIEWS, stored_files
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import (
    MANIFEST,
    SNAPSHOT_ID,
    Manifest,
    current_id,
    read_manifest,
    snapshot_folder,
    snapshot_ids,
)
from medret.snapshot.mentions import Mentions, digest, files_naming, ids_of, ledger_rows, require_mentioned, with_copies
from medret.snapshot.names import is_deletable, is_temporary, kind_of, strangers
from medret.snapshot.publish import make_live
from medret.snapshot.tables import ledger_parts, named_files, read_files, read_journal, read_tombstones
from medret.storage import Location

FORGETTING = "FORGETTING"
Say = Callable[[str], None]

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


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did.

    volumes: ids. snapshots: old id -> new id. places: files that mentioned the volumes. unreadable: files and snapshots
    deleted whole, because nobody could tell what they held. live: id of the live snapshot.
    """

    volumes: tuple[str, ...]
    snapshots: Mapping[str, str]
    places: tuple[str, ...]
    unreadable: tuple[str, ...]
    live: str | None


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
    ids = sorted({*snapshot_ids(store), live})  # its manifest may be lost, or not listed yet
    newest = set(ids[-keep:]) if keep else set()
    kept = [snapshot for snapshot in ids if snapshot == live or snapshot in newest or _moment(snapshot) > before]
    manifests = {snapshot: read_manifest(store, snapshot) for snapshot in kept}
    needed = _needed(store, manifests)
    reports = tuple(f"runs/{manifest.run}-" for manifest in manifests.values())
    # `forget` writes the manifests of old snapshots again: they go with what they name, however young the files are.
    dropped = tuple(snapshot for snapshot in ids if snapshot not in kept)
    old = {f"{snapshot_folder(snapshot)}/{MANIFEST}" for snapshot in dropped}
    doomed = []
    paths = store.files()
    for path in paths:
        if path in needed or path.startswith(reports) or not is_deletable(path):
            continue
        try:
            # A file at the top of the store may belong to the lease, which this process is renewing.
            youngest = before if "/" in path else min(before, datetime.now(UTC) - RENEWING)
            if path in old or store.modified_at(path) <= youngest:
                doomed.append(path)
        except FileNotFoundError:
            continue
    # Manifests first: a snapshot without one is not listed any more when its other files go.
    doomed.sort(key=lambda path: (not path.startswith("snapshots/"), path))
    size = sum(store.size_bytes(path) for path in doomed)
    if not dry_run:
        _delete_files(store, doomed, lease)
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


def forget(
    store: Location, volume_ids: AbstractSet[str], lease: Lease, *, copies: bool = False, say: Say = lambda _: None
) -> Forgotten:
    """Remove volumes from every file of a store, then search all files that stay for their ids.

    copies: also remove other volumes with the same content, whose vectors are equal. Raises NotFoundError if nothing in
    the store mentions a volume, UsageError if there are copies and `copies` is not set, CorruptError if a file of the
    live snapshot cannot be read; all three change nothing. Raises MedretError at the end if a file, such as one that is
    not medret's, still names a volume.
    """
    note = finish(store, lease, say)
    done = frozenset(volume_id for volume_id in volume_ids if note and digest(volume_id) in note.volumes)
    ids = with_copies(store, require_mentioned(store, volume_ids - done), copies=copies)
    if ids or note is None:
        lease.check()
        write_note(store, Note(tuple(sorted(map(digest, ids)))))
        try:
            note = _replace(store, ids, lease)
        except (CorruptError, UsageError, VersionError):  # refused, not interrupted: there is nothing to finish
            store.delete(FORGETTING)
            raise
        _remove(store, note, lease)
    if note.left:
        raise MedretError(
            f"{store.uri}: forgot {len(volume_ids)} volumes, but {len(note.left)} files still name them, or cannot be "
            f"read: {', '.join(note.left[:5])}; check them yourself"
        )
    return Forgotten(
        tuple(sorted(ids | done)), note.snapshots, tuple(sorted(note.doomed or ())), note.unreadable, current_id(store)
    )


def finish(store: Location, lease: Lease, say: Say = lambda _: None) -> Note | None:
    """Finish a `forget` that was killed; return its note, or None if there was none.

    An id that was in no table, only in the text of a report or manifest, cannot be found from its digest: run `forget`
    for it again.
    """
    note = read_note(store)
    if note is None:
        return None
    if note.doomed is None:
        ids = ids_of(store, frozenset(note.volumes))
        note = _replace(store, ids, lease) if ids else Note(volumes=(), doomed=())
    _remove(store, note, lease)
    say(f"finished a `medret forget` of {len(note.volumes)} volumes that had been interrupted")
    if note.left:
        say(f"{len(note.left)} files still name them, or cannot be read: {', '.join(note.left[:5])}")
    return note


def _replace(store: Location, ids: frozenset[str], lease: Lease) -> Note:
    """Write new files without the volumes, and a note of the old files that they replace. Deletes nothing."""
    snapshots, unreadable = _readable(store)
    stay = {volume_id for volume_id, _ in ledger_rows(store)}
    archives = {manifest.archive_uri for manifest in snapshots.values()}
    work = Erasure(store, lease, Mentions(ids, stay, archives))
    erase_tables(work, "embeddings", "embeddings")
    erase_tables(work, "quarantine", "quarantine")
    erase_indices(work, snapshots)
    for snapshot_id, manifest in list(snapshots.items()):
        files = stored_files(read_files(store, snapshot_id, manifest))
        # A snapshot can do without previews, and without its quarantine table: the ledger says the same.
        if lost := {file.path for file in files if file.kind not in ("quarantine", PREVIEWS)} & work.unreadable:
            _refuse_if_live(store, snapshot_id, min(lost))
            unreadable.append(snapshot_folder(snapshot_id))
            del snapshots[snapshot_id]
    renamed: dict[str, str] = {}
    for old in parents_first(snapshots):
        renamed[old] = rewrite_snapshot(work, old, snapshots[old], renamed)
    erase_journal(work)
    erase_reports(work)
    doomed = _doomed(store, work, set(renamed.values()))
    left = files_naming(store, Mentions(ids, stay | work.stay, archives), set(doomed))
    note = Note(
        volumes=tuple(sorted(map(digest, ids))),
        doomed=tuple(doomed),
        snapshots={old: new for old, new in renamed.items() if old != new},
        unreadable=tuple(sorted({*unreadable, *work.unreadable})),
        left=tuple(left),
    )
    lease.check()
    write_note(store, note)
    return note


def _remove(store: Location, note: Note, lease: Lease) -> None:
    """Make the new snapshot live and delete the old files."""
    lease.check()
    live = current_id(store)
    if live in note.snapshots:
        make_live(store, note.snapshots[live], live)
    _delete_files(store, note.doomed or (), lease)
    lease.check()
    store.delete(FORGETTING)


def _delete_files(store: Location, paths: Iterable[str], lease: Lease) -> None:
    """Delete files of medret, and check the lease regularly; skip other paths, which a forged note may name."""
    for number, path in enumerate(paths):
        if number % 100 == 0:
            lease.check()
        if is_deletable(path):
            store.delete(path)


def _readable(store: Location) -> tuple[dict[str, Manifest], list[str]]:
    """Read the snapshots; also return the folders of unreadable ones. Raises CorruptError if the live one is."""
    snapshots, unreadable = {}, []
    for snapshot_id in sorted({*snapshot_ids(store), *filter(None, [current_id(store)])}):
        try:
            manifest = read_manifest(store, snapshot_id)
            read_files(store, snapshot_id, manifest)
            read_tombstones(store, snapshot_id, manifest)
            for _ in ledger_parts(store, snapshot_id, manifest):
                pass
            snapshots[snapshot_id] = manifest
        except CorruptError as error:
            _refuse_if_live(store, snapshot_id, str(error))
            unreadable.append(snapshot_folder(snapshot_id))
    return snapshots, unreadable


def _refuse_if_live(store: Location, snapshot_id: str, problem: str) -> None:
    if snapshot_id == current_id(store):
        raise CorruptError(
            f"the live snapshot {snapshot_id} cannot be read: {problem}; restore the file, or make another snapshot "
            "live with `medret rollback`, then run `medret forget` again"
        )


def _doomed(store: Location, work: Erasure, snapshots: set[str]) -> list[str]:
    """Return the files to delete, manifests first: a snapshot without one is not listed any more.

    They are the files that were replaced or given up, temporaries of killed writers, and indices and tables that none
    of the new snapshots names.
    """
    named: set[str] = set()
    for snapshot_id in snapshots:
        named |= named_files(store, snapshot_id, read_manifest(store, snapshot_id))
    doomed = []
    for path in store.files():
        kind = kind_of(path)
        if (
            path in work.moved
            or (kind in ("manifest", "table", "index", "centre") and path not in named)
            or ("/" in path and is_temporary(path))  # at the top of the store, it may be the lease's
        ):
            doomed.append(path)
    return sorted(doomed, key=lambda path: (not path.endswith(f"/{MANIFEST}"), path))


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of FORGETTING.

    volumes: sha256 of each id. doomed: files to delete, in this order; None while new files are being written.
    snapshots: old id -> new id. unreadable: files and snapshots deleted whole, because nobody can tell what they hold.
    left: files that name a volume but that medret must not change.
    """

    volumes: tuple[str, ...]
    doomed: tuple[str, ...] | None = None
    snapshots: dict[str, str] = {}
    unreadable: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def read_note(store: Location) -> Note | None:
    """Read the note of an unfinished `forget`; None if there is none. Raises CorruptError if it is damaged."""
    try:
        return msgspec.json.decode(store.read(FORGETTING), type=Note)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(
            f"{store.uri_of(FORGETTING)} is damaged ({error}): a `medret forget` was not finished, but its volumes are "
            "unknown; delete the file and run `medret forget` again for them"
        ) from error


def write_note(store: Location, note: Note) -> None:
    """Write the note; it replaces an earlier one."""
    store.write(FORGETTING, msgspec.json.encode(note) + b"\n")
