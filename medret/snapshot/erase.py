"""Erase volumes from the files of a store: write each file that holds something of them again without it.

Then write the snapshots again over the new files: with new ids, the same order, the same dates, and counts that
reconcile. Nothing is deleted here. A file that cannot be read (damaged, or of a killed writer) may hold anything: it is
given up whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import asdict, replace

from medret.embeddings.parquet import parquet_bytes, read_parquet
from medret.index import EXACT, ROWS_KIND, IndexSettings, build_shard, read_rows
from medret.index.index_files import exact_vectors
from medret.schemas import LEDGER, ROWS, TOMBSTONES
from medret.snapshot.files import INDEX_KINDS, StoredFile, files_table, mean_recall, stored_files
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import Counts, GateEntry, Manifest, TableEntry
from medret.snapshot.mentions import UNREADABLE, Mentions, is_text
from medret.snapshot.names import of_kinds
from medret.snapshot.publish import write_snapshot
from medret.snapshot.tables import (
    is_named_after,
    journal_paths,
    merged,
    read_entry,
    read_files,
    read_table,
    read_tombstones,
    write_entry,
    write_table,
)
from medret.storage import Location, read_checked

IndexShardKey = tuple[str, str]  # folder and key of an index shard
Changes = dict[str, Any]  # fields of a StoredFile that differ after it was written again


@dataclass(frozen=True)
class ErasedTable:
    """A table of the ledger. entry: of the table that replaces it. gone: its rows of the volumes to erase."""

    entry: TableEntry
    gone: pa.Table


@dataclass
class Erasure:
    """What to erase, and what was erased so far.

    moved: old path -> changes in its StoredFile; None if nothing is left of the file. shards: the same per index shard
    and kind of file, because shards with equal vectors share files. tables: path of a table of the ledger -> what
    became of it. unreadable: paths that were given up whole. stay: ids of other volumes that were seen.
    """

    store: Location
    lease: Lease
    mentions: Mentions
    moved: dict[str, Changes | None] = field(default_factory=dict)
    shards: dict[IndexShardKey, dict[str, Changes] | None] = field(default_factory=dict)
    tables: dict[str, ErasedTable] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    stay: set[str] = field(default_factory=set)

    @property
    def ids(self) -> AbstractSet[str]:
        """Ids of the volumes to erase."""
        return self.mentions.ids

    def touches(self, file: StoredFile) -> bool:
        """Whether the file was written again or given up."""
        return file.path in self.moved or shard_of(file) in self.shards

    def file(self, file: StoredFile) -> StoredFile | None:
        """Return the file that replaces this one; None if nothing is left of it."""
        if (key := shard_of(file)) in self.shards:
            changes = (self.shards[key] or {}).get(file.kind)
        elif file.path in self.moved:
            changes = self.moved[file.path]
        else:
            return file
        return None if changes is None else dataclasses.replace(file, **changes)

    def erased(self, table: pa.Table) -> pa.Table | None:
        """Remove the volumes from a table with a column `volume_id`; None if the table does not mention them."""
        rest = table.filter(pc.invert(self.names(table["volume_id"])))
        self.stay.update(rest["volume_id"].unique().to_pylist())
        kept = self.mentions.scrub_table(rest)
        return None if kept is rest and rest.num_rows == table.num_rows else kept

    def names(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Whether each id is that of a volume to erase."""
        return pc.is_in(ids, pa.array(sorted(self.ids), ids.type))

    def give_up(self, path: str) -> None:
        """Drop a file that cannot be read."""
        self.moved[path] = None
        self.unreadable.add(path)


def shard_of(file: StoredFile) -> IndexShardKey | None:
    """Return the index shard that a file belongs to; None for other kinds of files."""
    return (file.folder, file.shard or "") if file.kind in INDEX_KINDS else None


def erase_tables(work: Erasure, folder: str, kind: str) -> None:
    """Erase volumes from all embedding or quarantine tables of a folder, also from those that no snapshot names."""
    for path in of_kinds(work.store.files(folder), kind):
        table = _read(work.store, path)
        if table is None:
            work.give_up(path)
            continue
        kept = work.erased(table)
        if kept is None:
            continue
        work.lease.check()
        work.moved[path] = None
        if kept.num_rows:
            written = work.store.write_content_addressed(
                folder_of(path), stem_of(path), ".parquet", parquet_bytes(kept)
            )
            work.moved[path] = {**vars(written), "rows": kept.num_rows}


def erase_indices(work: Erasure, snapshots: Mapping[str, Manifest]) -> None:
    """Erase volumes from the index shards of these snapshots."""
    shards: dict[IndexShardKey, tuple[dict[str, StoredFile], IndexSettings]] = {}
    for snapshot_id, manifest in snapshots.items():
        settings = IndexSettings.from_json(manifest.index_settings)
        for file in stored_files(read_files(work.store, snapshot_id, manifest), INDEX_KINDS):
            shards.setdefault((file.folder, file.shard or ""), ({}, settings))[0][file.kind] = file
    for key, (members, settings) in shards.items():
        try:
            _erase_index(work, key, members, settings)
        except UNREADABLE:
            work.shards[key] = None
            work.unreadable |= {file.path for file in members.values()}


def erase_journal(work: Erasure) -> None:
    """Erase volumes from the entries of unfinished runs; drop an entry with unreadable files: a run repeats it."""
    for path in journal_paths(work.store):
        entry = read_entry(work.store, path)
        if entry is None:
            work.give_up(path)
            continue
        ledger, files = entry
        listed = stored_files(files)
        kept = work.erased(ledger)
        if kept is None and not any(map(work.touches, listed)):
            continue
        kept = ledger if kept is None else kept
        work.lease.check()
        work.moved[path] = None
        if kept.num_rows and work.unreadable.isdisjoint(file.path for file in listed):
            write_entry(work.store, stem_of(path), kept.cast(LEDGER), _replaced(work, listed))


def erase_reports(work: Erasure) -> None:
    """Replace the names of the volumes in run reports."""
    for path in of_kinds(work.store.files("runs"), "report"):
        before = work.store.read(path).decode("utf-8", errors="replace")
        text = work.mentions.scrub(before)
        if text != before:
            work.lease.check()
            work.store.write_content_addressed(folder_of(path), stem_of(path), ".json", text.encode())
            work.moved[path] = None


def folder_of(path: str) -> str:
    """Return the folder of a path."""
    return path.rpartition("/")[0]


def stem_of(path: str) -> str:
    """Return the file name of a path without checksum and suffix."""
    return path.rpartition("/")[2].rpartition("-")[0]


def _read(store: Location, path: str) -> pa.Table | None:
    """Read a table with a column `volume_id`; None if it is damaged."""
    try:
        data = store.read(path)
        table = read_parquet(data, name=path)
        ids = table["volume_id"]
    except UNREADABLE:
        return None
    return table if is_named_after(path, data) and is_text(ids.type) and not ids.null_count else None


def _erase_index(work: Erasure, key: IndexShardKey, members: Mapping[str, StoredFile], settings: IndexSettings) -> None:
    """Build an index shard again from its own exact vectors, because vectors cannot be removed from FAISS's graphs."""
    rows_file, exact_file = members[ROWS_KIND], members[EXACT]
    data = read_checked(work.store, rows_file.path, rows_file.sha256)
    table = read_rows(data, rows_file.path)
    ids = table["volume_id"].to_pylist()
    work.stay.update(set(ids) - work.ids)
    alive = np.array([volume_id not in work.ids for volume_id in ids], bool)
    if alive.all():
        return
    work.lease.check()
    work.shards[key] = None
    if not alive.any():
        return
    vectors = exact_vectors(read_checked(work.store, exact_file.path, exact_file.sha256))[alive]
    rows = table.select(ROWS.names).take(pa.array(np.flatnonzero(alive))).cast(ROWS)
    built = build_shard(work.store, key[0], vectors, rows, settings)
    work.shards[key] = {
        kind: {**vars(written), "rows": built.rows, "shard": built.shard, "recall": built.recall.get(kind)}
        for kind, written in built.files
    }


def parents_first(snapshots: Mapping[str, Manifest]) -> list[str]:
    """Order the snapshots so that each parent comes before its children, whose manifests hold its new id."""
    order: dict[str, None] = {}
    for snapshot_id in snapshots:
        line = [snapshot_id]
        while (parent := snapshots[line[-1]].parent or "") in snapshots and parent not in (*order, *line):
            line.append(parent)
        order |= dict.fromkeys(reversed(line))
    return list(order)


def rewrite_snapshot(work: Erasure, old: str, manifest: Manifest, renamed: Mapping[str, str]) -> str:
    """Write the snapshot again over the new files; return its new id, or `old` if it does not mention the volumes.

    renamed: old id -> new id of the snapshots that were written before.
    """
    files = stored_files(read_files(work.store, old, manifest))
    tombstones = read_tombstones(work.store, old, manifest)
    base = [_erased(work, table) for table in manifest.tables_of("ledger")]
    changes = [_erased(work, table) for table in manifest.tables_of("changes")]
    filled = [table.entry for table in base if table.entry.rows] or [base[0].entry]
    ledger = [*filled, *(table.entry for table in changes if table.entry.rows)]
    dead = work.erased(tombstones)
    said = {
        "parent": renamed.get(manifest.parent or "", manifest.parent),
        "gates": [_scrubbed(work, gate) for gate in manifest.gates],
        "exclude": [work.mentions.scrub(pattern) for pattern in manifest.exclude],
        "pattern": manifest.pattern and work.mentions.scrub(manifest.pattern),
    }
    same = all(value == getattr(manifest, name) for name, value in said.items())
    same = same and all(table.entry in manifest.tables for table in (*base, *changes))
    if same and dead is None and not any(map(work.touches, files)):
        return old
    dead = tombstones if dead is None else dead
    since = pa.concat_tables([LEDGER.empty_table(), *(table.gone for table in changes)])
    gone = pa.concat_tables(merged((table.gone for table in base), since))
    new_files = _files(work, files)
    fields: dict[str, Any] = {name: getattr(manifest, name) for name in Manifest.__struct_fields__}
    for name in ("format", "created", "tables"):
        del fields[name]
    fields |= said | {
        "counts": _counts(manifest.counts, gone),
        "slices": manifest.slices - int(pc.sum(gone["slices"]).as_py() or 0),
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
    new, _ = write_snapshot(work.store, ledger, new_files, _tombstones(work, files, dead), created, **fields)
    return new


def _erased(work: Erasure, entry: TableEntry) -> ErasedTable:
    """Write a table of the ledger again without the volumes; only once, because snapshots share it."""
    if entry.path not in work.tables:
        table = read_table(work.store, entry)
        kept = work.erased(table)
        if kept is not None:
            work.lease.check()
        new = entry if kept is None else write_table(work.store, entry.kind, kept)
        work.tables[entry.path] = ErasedTable(new, table.filter(work.names(table["volume_id"])))
    return work.tables[entry.path]


def _scrubbed(work: Erasure, gate: GateEntry) -> GateEntry:
    """Replace the names of the volumes in a gate's texts, which may name a canary."""
    return replace(gate, **{name: work.mentions.scrub(str(text)) for name, text in asdict(gate).items()})


def _shard_keys(work: Erasure, files: list[StoredFile]) -> dict[str | None, str | None]:
    """Map the old to the new keys of the index shards that were built again; None if nothing is left of a shard."""
    keys: dict[str | None, str | None] = {}
    for file in files:
        if (key := shard_of(file)) in work.shards:
            keys[file.shard] = next((new["shard"] for new in (work.shards[key] or {}).values()), None)
    return keys


def _files(work: Erasure, files: list[StoredFile]) -> pa.Table:
    """Make FILES over the new files; embedding files name the new shard that they are indexed in."""
    keys = _shard_keys(work, files)
    return _replaced(
        work, (dataclasses.replace(file, indexed_in=keys.get(file.indexed_in, file.indexed_in)) for file in files)
    )


def _replaced(work: Erasure, files: Iterable[StoredFile]) -> pa.Table:
    """Make FILES of the files that replace these."""
    return files_table(file for file in map(work.file, files) if file is not None)


def _tombstones(work: Erasure, files: list[StoredFile], dead: pa.Table) -> pa.Table:
    """Make TOMBSTONES for the new shards."""
    keys = _shard_keys(work, files)
    rows = [{**row, "shard": keys.get(row["shard"], row["shard"])} for row in dead.to_pylist()]
    return pa.Table.from_pylist([row for row in rows if row["shard"] is not None], schema=TOMBSTONES)


def _index_rows(gone: pa.Table, aggregation: str | None) -> int:
    """Count the index rows of erased ledger rows: volumes of an aggregation, or slices."""
    embedded = gone.filter(pc.equal(gone["status"], "embedded"))
    return embedded.num_rows if aggregation else int(pc.sum(embedded["slices"]).as_py() or 0)


def _counts(counts: Counts, gone: pa.Table) -> Counts:
    """Make the counts reconcile again. No file says which volumes a run embedded: subtract from `unchanged` first."""
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
