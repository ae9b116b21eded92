"""Forgetting volumes: a patient withdrew. No vector and no mention of them stays in the store.

Files are never changed, so every file that holds something of the volumes is written anew without it, and every
snapshot over the new files; CURRENT moves to the new live one, and the old files go. Killed half-way, it is run again
and finishes: the same input gives the same files and the same snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from medret.embeddings.shards import read_parquet
from medret.errors import UsageError
from medret.index import ROWS_KIND
from medret.schemas import FILES, TOMBSTONES
from medret.snapshot.erase import (
    Erasure,
    erase_embeddings,
    erase_indices,
    erase_journal,
    erase_quarantine,
    erase_reports,
    without,
)
from medret.snapshot.journal import read_journal
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import (
    MANIFEST,
    Counts,
    Manifest,
    current_id,
    mean_recall,
    read_files,
    read_ledger,
    read_manifest,
    read_tombstones,
    snapshot_folder,
    snapshot_ids,
)
from medret.snapshot.publish import make_live, write_snapshot
from medret.storage import Location


@dataclass(frozen=True)
class Forgotten:
    """What was done. volumes: their ids. snapshots: old id -> new id. places: files that held something of them."""

    volumes: tuple[str, ...]
    snapshots: Mapping[str, str]
    places: tuple[str, ...]
    live: str | None


def forget(store: Location, volume_ids: AbstractSet[str], lease: Lease, *, copies: bool = False) -> Forgotten:
    """Remove volumes from everything in a store.

    copies: also other volumes of the same content, whose vectors are the same bytes. Raises UsageError if nothing in
    the store knows a volume, or if there are copies and `copies` is not set.
    """
    snapshots = {one: read_manifest(store, one) for one in snapshot_ids(store)}
    work = Erasure(store, _with_copies(store, snapshots, frozenset(volume_ids), copies=copies), lease)
    erase_embeddings(work)
    erase_quarantine(work)
    erase_indices(work, snapshots)
    renamed: dict[str, str] = {}
    for old in _parents_first(snapshots):
        renamed[old] = _rewrite_snapshot(work, old, snapshots[old], renamed)
    changed = {old: new for old, new in renamed.items() if old != new}
    live = current_id(store)
    lease.check()
    if live in changed:
        make_live(store, changed[live], live)
        live = changed[live]
    erase_journal(work)
    erase_reports(work)
    lease.check()
    # Manifests first: a snapshot that is being removed is none any more before its files go. Folders that a killed run
    # left without a manifest go with them. Embeddings last: as long as they are there, the volumes are known.
    whole = {snapshot_folder(one) for one in snapshot_ids(store)} - {snapshot_folder(old) for old in changed}
    doomed = [path for path in store.files("snapshots") if path.rpartition("/")[0] not in whole]
    for path in [*sorted(doomed, key=lambda path: not path.endswith(MANIFEST)), *reversed(work.moved)]:
        store.delete(path)
    return Forgotten(tuple(sorted(work.ids)), changed, tuple(sorted({*doomed, *work.moved})), live)


def _parents_first(snapshots: Mapping[str, Manifest]) -> list[str]:
    """The snapshots, each after the one that it was made from: its id goes into the child's manifest."""
    order: dict[str, None] = {}
    for one in snapshots:
        line = [one]
        while (parent := snapshots[line[-1]].parent or "") in snapshots and parent not in order:
            line.append(parent)
        order |= dict.fromkeys(reversed(line))
    return list(order)


def _with_copies(
    store: Location, snapshots: Mapping[str, Manifest], ids: frozenset[str], *, copies: bool
) -> frozenset[str]:
    """The volumes, and those of the same content."""
    names = ["volume_id", "content_sha256"]
    ledgers = [read_ledger(store, one, manifest, names) for one, manifest in snapshots.items()]
    ledgers.append(read_journal(store).ledger.select(names))
    rows = {(row["volume_id"], row["content_sha256"]) for ledger in ledgers for row in ledger.to_pylist()}
    known = {volume_id for volume_id, _ in rows}
    for path in store.files("embeddings") if ids - known else ():  # rows that no ledger points to any more
        known |= set(read_parquet(store.read(path), ["volume_id"])["volume_id"].to_pylist())
    if unknown := ids - known:
        raise UsageError(
            f"{store.uri} knows no volume '{min(unknown)}'; the id of a volume is its path below the archive"
        )
    content = {sha256 for volume_id, sha256 in rows if volume_id in ids and sha256}
    same = {volume_id for volume_id, sha256 in rows if sha256 in content} - ids
    if same and not copies:
        raise UsageError(
            f"{len(same)} other volumes have the same content and so the same vectors, such as '{min(same)}'; name "
            "them too, or add --copies"
        )
    return ids | same


def _rewrite_snapshot(work: Erasure, old: str, manifest: Manifest, renamed: Mapping[str, str]) -> str:
    """The snapshot over the new files; the same id if it has nothing of the volumes."""
    ledger, files = read_ledger(work.store, old, manifest), read_files(work.store, old, manifest)
    dead = read_tombstones(work.store, old, manifest)
    parent = renamed.get(manifest.parent or "", manifest.parent)
    kept = without(ledger, work.ids)
    touched = any(path in work.moved for path in files["path"].to_pylist())
    if kept.num_rows == ledger.num_rows and not touched and parent == manifest.parent:
        return old
    # Index shards have new keys, which the rows of their embedding files and their tombstones follow.
    keys: dict[str | None, str | None] = {
        row["shard"]: (work.moved[row["path"]] or {}).get("shard")
        for row in files.to_pylist()
        if row["kind"] == ROWS_KIND and row["path"] in work.moved
    }
    rows = [row for row in map(work.row, files.to_pylist()) if row is not None]
    rows = [{**row, "indexed_in": keys.get(row["indexed_in"], row["indexed_in"])} for row in rows]
    tombs = [{**row, "shard": keys.get(row["shard"], row["shard"])} for row in without(dead, work.ids).to_pylist()]
    gone = ledger.filter(pc.is_in(ledger["volume_id"], pa.array(sorted(work.ids))))
    fields: dict[str, Any] = {name: getattr(manifest, name) for name in Manifest.__struct_fields__}
    for name in ("format", "created", "tables"):
        del fields[name]
    new_files = pa.Table.from_pylist(rows, schema=FILES)
    fields |= {
        "parent": parent,
        "counts": _counts(manifest.counts, gone),
        "slices": int(pc.sum(kept["slices"]).as_py() or 0),
        "indices": [
            replace(
                entry,
                rows=entry.rows - _index_rows(gone, entry.aggregation),
                recall=mean_recall(new_files, entry.recipe, entry.aggregation),
            )
            for entry in manifest.indices
        ],
    }
    tombstones = pa.Table.from_pylist([tomb for tomb in tombs if tomb["shard"] is not None], schema=TOMBSTONES)
    created = datetime.fromisoformat(manifest.created)
    new, _ = write_snapshot(work.store, kept, new_files, tombstones, created, **fields)
    return new


def _index_rows(gone: pa.Table, aggregation: str | None) -> int:
    embedded = gone.filter(pc.equal(gone["status"], "embedded"))
    return embedded.num_rows if aggregation else int(pc.sum(embedded["slices"]).as_py() or 0)


def _counts(counts: Counts, gone: pa.Table) -> Counts:
    """Counts that reconcile again. Which volumes a run embedded is not recorded: unchanged ones are taken off first."""
    embedded = _index_rows(gone, "volumes")
    unchanged = max(0, counts.unchanged - embedded)
    left = counts.embedded - (embedded - (counts.unchanged - unchanged))
    return replace(
        counts,
        listed=counts.listed - gone.num_rows,
        embedded=left,
        unchanged=unchanged,
        new=min(counts.new, left),
        changed=min(counts.changed, left),
        renamed=min(counts.renamed, unchanged),
        stale=min(counts.stale, unchanged),
        quarantined=counts.quarantined - (gone.num_rows - embedded),
    )
