"""Forget volumes, such as those of a patient who withdrew: no vector and no mention of them stays in the store.

Files never change. So every file that holds something of the volumes is written again without it, as a new file, and
every snapshot is written again over the new files. CURRENT moves to the new live snapshot, and the old files are
deleted. STORE/FORGETTING says what is to be forgotten before anything else is written, so after a crash the next
`forget`, `index` or `gc` finishes the work:

    {"volumes": ["<sha256 of a volume's id>"], "snapshots": {"<old id>": "<new id>"}, "doomed": ["<path>"], ...}

The note does not hold the ids themselves. At first it names only the volumes: new files are being written and nothing
is deleted, so the tables still tell which ids these are. When all new files are in the store, the note says what they
replace; from then on, finishing needs no id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec

from medret.embeddings.parquet import read_parquet
from medret.errors import CorruptError, MedretError, NotFoundError, StorageError, UsageError
from medret.snapshot.erase import (
    Erasure,
    erase_indices,
    erase_journal,
    erase_reports,
    erase_tables,
    folder_of,
    parents_first,
    rewrite_snapshot,
)
from medret.snapshot.files import stored_files
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import (
    MANIFEST,
    Manifest,
    current_id,
    read_files,
    read_ledger,
    read_manifest,
    read_tombstones,
    snapshot_folder,
    snapshot_ids,
)
from medret.snapshot.mentions import UNREADABLE, Mentions, read_table
from medret.snapshot.names import SINGLE, is_temporary, kind_of, own
from medret.snapshot.publish import make_live
from medret.storage import Location

FORGETTING = "FORGETTING"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Forgotten:
    """What was done.

    volumes: their ids. snapshots: old id -> new id. places: files that held something of them. unreadable: those among
    them, and snapshots, that were erased whole, because nobody can tell what they held. live: the live snapshot.
    """

    volumes: tuple[str, ...]
    snapshots: Mapping[str, str]
    places: tuple[str, ...]
    unreadable: tuple[str, ...]
    live: str | None


def forget(
    store: Location, volume_ids: AbstractSet[str], lease: Lease, *, copies: bool = False, say: Say = lambda _: None
) -> Forgotten:
    """Remove volumes from everything in a store, then search all of it for their ids.

    copies: also other volumes of the same content, whose vectors are the same bytes. Raises NotFoundError if nothing in
    the store knows a volume, UsageError if there are copies and `copies` is not set, CorruptError if a file of the live
    snapshot cannot be read; these change nothing. Raises MedretError, after all is done, if a file still names a
    volume, such as one that is not medret's.
    """
    earlier = finish(store, lease, say)
    done = frozenset(one for one in volume_ids if earlier and digest(one) in earlier.volumes)
    ids, note = _with_copies(store, _known(store, volume_ids - done), copies=copies), earlier
    if ids or note is None:
        lease.check()
        write_note(store, Note(tuple(sorted(map(digest, ids)))))
        try:
            note = _replace(store, ids, lease)
        except CorruptError:  # refused, not stopped: nobody is to go on with it
            store.delete(FORGETTING)
            raise
        _remove(store, note, lease)
    if note.left:
        raise MedretError(
            f"{store.uri}: forgot {len(volume_ids)} volumes, but {len(note.left)} files still name them, or cannot be "
            f"read: {', '.join(note.left[:5])}; see to them yourself"
        )
    return Forgotten(
        tuple(sorted(ids | done)), note.snapshots, tuple(sorted(note.doomed or ())), note.unreadable, current_id(store)
    )


def finish(store: Location, lease: Lease, say: Say = lambda _: None) -> Note | None:
    """Finish what a killed `forget` began; returns what that was, None where there was nothing to do.

    An id that stood in no table, only in the words of a report or manifest, cannot be told from its digest: that one
    is left to whoever runs `forget` for it again.
    """
    note = read_note(store)
    if note is None:
        return None
    if note.doomed is None:
        ids = _ids_of(store, frozenset(note.volumes))
        note = _replace(store, ids, lease) if ids else Note(volumes=(), doomed=())
    _remove(store, note, lease)
    say(f"finished a `medret forget` of {len(note.volumes)} volumes that had been stopped")
    if note.left:
        say(f"{len(note.left)} files still name them, or cannot be read: {', '.join(note.left[:5])}")
    return note


def _replace(store: Location, ids: frozenset[str], lease: Lease) -> Note:
    """Write everything anew that holds something of the volumes, and note what the old files are. Deletes nothing."""
    snapshots, unreadable = _readable(store)
    stay = {volume_id for volume_id, _ in _rows_known(store)}
    work = Erasure(store, lease, Mentions(ids, stay))
    erase_tables(work, "embeddings", "embeddings")
    erase_tables(work, "quarantine", "quarantine")
    erase_indices(work, snapshots)
    for one, manifest in list(snapshots.items()):
        named = read_files(store, one, manifest)
        # The quarantine table says nothing that the ledger does not.
        vital = {file.path for file in stored_files(named) if file.kind != "quarantine"}
        if lost := vital & work.unreadable:
            _refuse_if_live(store, one, min(lost))
            unreadable.append(snapshot_folder(one))
            del snapshots[one]
    renamed: dict[str, str] = {}
    for old in parents_first(snapshots):
        renamed[old] = rewrite_snapshot(work, old, snapshots[old], renamed)
    erase_journal(work)
    erase_reports(work)
    doomed = _doomed(store, work, set(renamed.values()))
    left = _left(store, Mentions(ids, stay | work.stay), set(doomed))
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
    for number, path in enumerate(note.doomed or ()):
        if number % 100 == 0:
            lease.check()
        if is_temporary(path) or kind_of(path) not in (None, *SINGLE):  # the note may have been forged
            store.delete(path)
    lease.check()
    store.delete(FORGETTING)


def _readable(store: Location) -> tuple[dict[str, Manifest], list[str]]:
    """The snapshots, and the folders of those that cannot be read; raises CorruptError if that is the live one."""
    found, unreadable = {}, []
    for one in snapshot_ids(store):
        try:
            manifest = read_manifest(store, one)
            for read in (read_files, read_tombstones, read_ledger):
                read(store, one, manifest)
            found[one] = manifest
        except CorruptError as error:
            _refuse_if_live(store, one, str(error))
            unreadable.append(snapshot_folder(one))
    return found, unreadable


def _refuse_if_live(store: Location, snapshot_id: str, problem: str) -> None:
    if snapshot_id == current_id(store):
        raise CorruptError(
            f"the live snapshot {snapshot_id} cannot be read whole: {problem}; restore the file, or make another "
            "snapshot live with `medret rollback`, and forget then"
        )


def _doomed(store: Location, work: Erasure, snapshots: set[str]) -> list[str]:
    """What goes, manifests first: a snapshot that is being removed is none any more before its files go.

    It is what was replaced or given up, what killed writers left, and indices and tables that no snapshot names.
    """
    named: set[str] = set()
    for one in snapshots:
        named |= set(read_files(store, one, read_manifest(store, one))["path"].to_pylist())
    folders = {snapshot_folder(one) for one in snapshots}
    doomed = []
    for path in store.files():
        kind = kind_of(path)
        if (
            path in work.moved
            or (kind in ("manifest", "table") and folder_of(path) not in folders)
            or (kind in ("index", "centre") and path not in named)
            or ("/" in path and is_temporary(path))  # beside the folders: of the lease, and of nobody
        ):
            doomed.append(path)
    return sorted(doomed, key=lambda path: (not path.endswith(f"/{MANIFEST}"), path))


def _left(store: Location, mentions: Mentions, doomed: set[str]) -> Iterator[str]:
    """Search everything that stays."""
    for path in store.files():
        if path not in doomed:
            try:
                if mentions.in_file(store, path):
                    yield path
            except StorageError:
                yield path
            except CorruptError:  # a link that leads out: what it leads to is not in the store
                continue


def _known(store: Location, volume_ids: AbstractSet[str]) -> frozenset[str]:
    """The ids; raises NotFoundError if neither a table nor a report nor a manifest has one of them."""
    for volume_id in sorted(volume_ids - _ids_of(store, frozenset(map(digest, volume_ids)))):
        mentions = Mentions({volume_id}, ())
        texts = own(store.files(), "report", "manifest")
        if not any(mentions.in_file(store, path) for path in texts):
            raise NotFoundError(
                f"{store.uri} knows no volume '{volume_id}'; the id of a volume is its path below the archive"
            )
    return frozenset(volume_ids)


def _ids_of(store: Location, digests: AbstractSet[str]) -> frozenset[str]:
    """The ids with these digests, as far as a table of the store has them."""
    found: set[str] = set()
    for kinds in (("table", "journal", "quarantine"), ("embeddings", "index")):
        if len(found) < len(digests):
            ids = {one for path in own(store.files(), *kinds) for one in _column(store, path)}
            found |= {one for one in ids if digest(one) in digests}
    return frozenset(found)


def _column(store: Location, path: str) -> Iterable[str]:
    """The ids in a table of medret; none in what cannot be read."""
    if path.endswith(".faiss"):
        return ()
    try:
        table = read_table(path, store.read(path))
    except UNREADABLE:
        return ()
    ids = table["volume_id"].unique().to_pylist() if table and "volume_id" in table.schema.names else []
    return (one for one in ids if isinstance(one, str))


def _with_copies(store: Location, ids: frozenset[str], *, copies: bool) -> frozenset[str]:
    """The volumes, and those of the same content; raises UsageError if there are any and `copies` is not set."""
    rows = set(_rows_known(store)) if ids else set()
    content = {sha256 for volume_id, sha256 in rows if volume_id in ids and sha256}
    same = {volume_id for volume_id, sha256 in rows if sha256 in content} - ids
    if same and not copies:
        raise UsageError(
            f"{len(same)} other volumes have the same content and so the same vectors, such as '{min(same)}'; name "
            "them too, or add --copies"
        )
    return ids | same


def _rows_known(store: Location) -> Iterator[tuple[str, str | None]]:
    """volume_id and content_sha256 of every ledger row and journal entry that can be read."""
    for path in own(store.files(), "table", "journal"):
        if path.startswith("journal/") or "/ledger-" in path:
            try:
                table = read_parquet(store.read(path), ["volume_id", "content_sha256"])
            except UNREADABLE:
                continue
            yield from zip(table["volume_id"].to_pylist(), table["content_sha256"].to_pylist(), strict=True)


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What FORGETTING says.

    volumes: sha256 of each id. doomed: files to delete, in that order; None while new files are being written.
    snapshots: old id -> new id. unreadable: files and snapshots erased whole, because nobody can tell what they hold.
    left: files that name a volume and are not medret's to change.
    """

    volumes: tuple[str, ...]
    doomed: tuple[str, ...] | None = None
    snapshots: dict[str, str] = {}
    unreadable: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def digest(volume_id: str) -> str:
    """What stands for an id in the note."""
    return hashlib.sha256(volume_id.encode("utf-8", "surrogateescape")).hexdigest()


def read_note(store: Location) -> Note | None:
    """What an unfinished `forget` left; None if there is none. Raises CorruptError if it cannot be understood."""
    try:
        return msgspec.json.decode(store.read(FORGETTING), type=Note)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(
            f"{store.uri_of(FORGETTING)} is damaged ({error}): a `medret forget` was not finished, and for which "
            "volumes cannot be told; delete the file and run it again for them"
        ) from error


def write_note(store: Location, note: Note) -> None:
    """Write it down; the one that was there is replaced."""
    store.write(FORGETTING, msgspec.json.encode(note) + b"\n")
