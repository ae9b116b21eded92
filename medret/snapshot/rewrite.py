"""Snapshots over the files that were written anew: other ids, the same order, dates and counts that reconcile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import asdict, replace

from medret.schemas import TOMBSTONES
from medret.snapshot.erase import Erasure, shard_of
from medret.snapshot.files import StoredFile, files_table, mean_recall, stored_files
from medret.snapshot.manifest import (
    Counts,
    GateEntry,
    Manifest,
    read_files,
    read_ledger,
    read_tombstones,
)
from medret.snapshot.publish import write_snapshot


def parents_first(snapshots: Mapping[str, Manifest]) -> list[str]:
    """The snapshots, each after the one that it was made from: its id goes into the child's manifest."""
    order: dict[str, None] = {}
    for one in snapshots:
        line = [one]
        while (parent := snapshots[line[-1]].parent or "") in snapshots and parent not in (*order, *line):
            line.append(parent)
        order |= dict.fromkeys(reversed(line))
    return list(order)


def rewrite_snapshot(work: Erasure, old: str, manifest: Manifest, renamed: Mapping[str, str]) -> str:
    """Write the snapshot over the new files; returns its id, which is the same if it has nothing of the volumes.

    renamed: old id -> new id of its parents.
    """
    ledger, files = read_ledger(work.store, old, manifest), stored_files(read_files(work.store, old, manifest))
    tombstones = read_tombstones(work.store, old, manifest)
    parent = renamed.get(manifest.parent or "", manifest.parent)
    gates = [_scrubbed(work, gate) for gate in manifest.gates]
    kept, dead = work.kept_of(ledger), work.kept_of(tombstones)
    exclude = [work.mentions.scrub(pattern) for pattern in manifest.exclude]
    words = (parent, gates, exclude)
    same = kept is None and dead is None and words == (manifest.parent, manifest.gates, manifest.exclude)
    if same and not any(map(work.touches, files)):
        return old
    kept, dead = ledger if kept is None else kept, tombstones if dead is None else dead
    gone = ledger.filter(pc.is_in(ledger["volume_id"], pa.array(sorted(work.ids), ledger["volume_id"].type)))
    new_files = _files(work, files)
    fields: dict[str, Any] = {name: getattr(manifest, name) for name in Manifest.__struct_fields__}
    for name in ("format", "created", "tables"):
        del fields[name]
    fields |= {
        "parent": parent,
        "gates": gates,
        "exclude": exclude,
        "counts": _counts(manifest.counts, gone),
        "slices": int(pc.sum(kept["slices"]).as_py() or 0),
        "indices": [
            replace(
                entry,
                rows=entry.rows - _index_rows(gone, entry.aggregation),
                recall=mean_recall(stored_files(new_files, recipe=entry.recipe, aggregation=entry.aggregation)),
            )
            for entry in manifest.indices
        ],
    }
    created = datetime.fromisoformat(manifest.created)
    new, _ = write_snapshot(work.store, kept, new_files, _tombstones(work, files, dead), created, **fields)
    return new


def _scrubbed(work: Erasure, gate: GateEntry) -> GateEntry:
    """A gate's words without the volumes: a canary is named in them."""
    return replace(gate, **{name: work.mentions.scrub(str(text)) for name, text in asdict(gate).items()})


def _shard_keys(work: Erasure, files: list[StoredFile]) -> dict[str | None, str | None]:
    """Old key -> new key of the index shards that were built anew; None where nothing is left of one."""
    keys: dict[str | None, str | None] = {}
    for file in files:
        if (key := shard_of(file)) in work.shards:
            keys[file.shard] = next((new["shard"] for new in (work.shards[key] or {}).values()), None)
    return keys


def _files(work: Erasure, files: list[StoredFile]) -> pa.Table:
    """FILES over the new files; embedding files say which new shard they are indexed in."""
    keys = _shard_keys(work, files)
    return files_table(
        dataclasses.replace(file, indexed_in=keys.get(file.indexed_in, file.indexed_in))
        for file in map(work.file, files)
        if file is not None
    )


def _tombstones(work: Erasure, files: list[StoredFile], dead: pa.Table) -> pa.Table:
    """TOMBSTONES of the new shards."""
    keys = _shard_keys(work, files)
    rows = [{**row, "shard": keys.get(row["shard"], row["shard"])} for row in dead.to_pylist()]
    return pa.Table.from_pylist([row for row in rows if row["shard"] is not None], schema=TOMBSTONES)


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
