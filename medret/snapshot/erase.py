"""Files without some volumes: every file of a store that holds something of them, written anew under its new name.

Nothing is deleted here. What cannot be read, of a killed writer or damaged, may hold anything: it is given up whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.embeddings.parquet import read_parquet
from medret.embeddings.shards import parquet_bytes
from medret.index import EXACT, ROWS_KIND, IndexSettings, build_shard, read_rows
from medret.index.index_files import exact_vectors
from medret.schemas import LEDGER, ROWS
from medret.snapshot.files import INDEX_KINDS, StoredFile, files_table, stored_files
from medret.snapshot.journal import is_named_after, journal_paths, read_entry, write_entry
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import Manifest, read_files
from medret.snapshot.mentions import UNREADABLE, Mentions, is_text
from medret.snapshot.names import own
from medret.storage import Location, read_checked

IndexShardKey = tuple[str, str]  # folder and key of an index shard
Changes = dict[str, Any]  # the fields of a StoredFile that differ after it was written again


@dataclass
class Erasure:
    """What is to be erased, and what was done.

    moved: old path -> what changes in its StoredFile; None: nothing is left of it. shards: the same for index shards,
    by kind of file: shards that hold equal vectors share files. unreadable: paths that were given up whole.
    stay: ids of other volumes that were seen.
    """

    store: Location
    lease: Lease
    mentions: Mentions
    moved: dict[str, Changes | None] = field(default_factory=dict)
    shards: dict[IndexShardKey, dict[str, Changes] | None] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    stay: set[str] = field(default_factory=set)

    @property
    def ids(self) -> AbstractSet[str]:
        """The volumes that are to be forgotten."""
        return self.mentions.ids

    def touches(self, file: StoredFile) -> bool:
        """Whether a file was written again or given up."""
        return file.path in self.moved or shard_of(file) in self.shards

    def file(self, file: StoredFile) -> StoredFile | None:
        """The file that took the place of this one; None if nothing is left of it."""
        if (key := shard_of(file)) in self.shards:
            changes = (self.shards[key] or {}).get(file.kind)
        elif file.path in self.moved:
            changes = self.moved[file.path]
        else:
            return file
        return None if changes is None else replace(file, **changes)

    def kept_of(self, table: pa.Table) -> pa.Table | None:
        """A table with a column `volume_id` without the volumes; None if it has nothing of them."""
        ids = table["volume_id"]
        rest = table.filter(pc.invert(pc.is_in(ids, pa.array(sorted(self.ids), ids.type))))
        self.stay.update(rest["volume_id"].unique().to_pylist())
        kept = self.mentions.scrub_table(rest)
        return None if kept is rest and rest.num_rows == table.num_rows else kept

    def give_up(self, path: str) -> None:
        """Let go of a file that cannot be read."""
        self.moved[path] = None
        self.unreadable.add(path)


def shard_of(file: StoredFile) -> IndexShardKey | None:
    """The index shard that a file belongs to; None if it is no index file."""
    return (file.folder, file.shard or "") if file.kind in INDEX_KINDS else None


def erase_tables(work: Erasure, folder: str, kind: str) -> None:
    """The Parquet files of a folder: vectors or quarantine, whether a snapshot names them or not."""
    for path in own(work.store.files(folder), kind):
        table = _read(work.store, path)
        if table is None:
            work.give_up(path)
            continue
        kept = work.kept_of(table)
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
    """The index shards of these snapshots."""
    shards: dict[IndexShardKey, tuple[dict[str, StoredFile], IndexSettings]] = {}
    for one, manifest in snapshots.items():
        settings = IndexSettings.from_json(manifest.index_settings)
        for file in stored_files(read_files(work.store, one, manifest), INDEX_KINDS):
            key = file.folder, file.shard or ""
            shards.setdefault(key, ({}, settings))[0][file.kind] = file
    for key, (members, settings) in shards.items():
        try:
            _erase_index(work, key, members, settings)
        except UNREADABLE:
            work.shards[key] = None
            work.unreadable |= {file.path for file in members.values()}


def erase_journal(work: Erasure) -> None:
    """Entries of unfinished runs. One whose files cannot all be read goes: its volumes are embedded again."""
    for path in journal_paths(work.store):
        entry = read_entry(work.store, path)
        if entry is None:
            work.give_up(path)
            continue
        ledger, files = entry
        named = stored_files(files)
        kept = work.kept_of(ledger)
        if kept is None and not any(map(work.touches, named)):
            continue
        kept = ledger if kept is None else kept
        work.lease.check()
        work.moved[path] = None
        if kept.num_rows and work.unreadable.isdisjoint(file.path for file in named):
            new = files_table(file for file in map(work.file, named) if file is not None)
            write_entry(work.store, stem_of(path), kept.cast(LEDGER), new)


def erase_reports(work: Erasure) -> None:
    """Names in run reports."""
    for path in own(work.store.files("runs"), "report"):
        before = work.store.read(path).decode("utf-8", errors="replace")
        text = work.mentions.scrub(before)
        if text != before:
            work.lease.check()
            work.store.write_content_addressed(folder_of(path), stem_of(path), ".json", text.encode())
            work.moved[path] = None


def folder_of(path: str) -> str:
    """A file's folder."""
    return path.rpartition("/")[0]


def stem_of(path: str) -> str:
    """A file's name without checksum and suffix."""
    return path.rpartition("/")[2].rpartition("-")[0]


def _read(store: Location, path: str) -> pa.Table | None:
    """A table with a column `volume_id`; None if it is damaged."""
    try:
        data = store.read(path)
        table = read_parquet(data, name=path)
        ids = table["volume_id"]
    except UNREADABLE:
        return None
    return table if is_named_after(path, data) and is_text(ids.type) and not ids.null_count else None


def _erase_index(work: Erasure, key: IndexShardKey, members: Mapping[str, StoredFile], settings: IndexSettings) -> None:
    """Build an index shard anew, out of the vectors that it holds itself: FAISS's graphs cannot let go of one."""
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
