"""Files without some volumes: every file of a store that holds something of them, written anew under its new name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.embeddings.shards import parquet_bytes, read_parquet
from medret.index import EXACT, KINDS, ROWS_KIND, IndexSettings, build_shard
from medret.index.open import exact_vectors
from medret.schemas import FILES, LEDGER, ROWS
from medret.snapshot.journal import FILES_KEY, FOLDER, write_entry
from medret.snapshot.lease import Lease
from medret.snapshot.manifest import Manifest, read_files
from medret.storage import Location, read_checked

FORGOTTEN = "(forgotten)"


@dataclass
class Erasure:
    """What is to be erased, and what was done. moved: old path -> what differs in its row of FILES, None: nothing left.

    The old files are still there: `moved` names those to delete once nothing points to them.
    """

    store: Location
    ids: frozenset[str]
    lease: Lease
    moved: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def row(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """A row of FILES over the new files; None if nothing is left of its file."""
        if row["path"] not in self.moved:
            return dict(row)
        new = self.moved[row["path"]]
        return None if new is None else {**row, **new}


def without(table: pa.Table, ids: AbstractSet[str]) -> pa.Table:
    """The rows of other volumes."""
    return table.filter(pc.invert(pc.is_in(table["volume_id"], pa.array(sorted(ids), pa.string()))))


def erase_embeddings(work: Erasure) -> None:
    """Parquet files of vectors, whether a snapshot names them or not."""
    for path in work.store.files("embeddings"):
        _erase_table(work, path)


def erase_quarantine(work: Erasure) -> None:
    """Quarantine tables."""
    for path in work.store.files("quarantine"):
        _erase_table(work, path)


def erase_indices(work: Erasure, snapshots: Mapping[str, Manifest]) -> None:
    """Index shards; those that no snapshot names are dropped."""
    shards: dict[tuple[str, str], tuple[dict[str, dict[str, Any]], IndexSettings]] = {}
    named: set[str] = set()
    for one, manifest in snapshots.items():
        files = read_files(work.store, one, manifest)
        settings = IndexSettings.from_json(manifest.index_settings)
        named |= set(files["path"].to_pylist())
        for row in files.filter(pc.is_in(files["kind"], pa.array([*KINDS, ROWS_KIND]))).to_pylist():
            key = (row["path"].rpartition("/")[0], row["shard"])
            shards.setdefault(key, ({}, settings))[0][row["kind"]] = row
    for (folder, _), (members, settings) in shards.items():
        _erase_index(work, folder, members, settings)
    named |= {row["path"] for row in work.moved.values() if row}
    for path in work.store.files("indices"):
        if path not in named:
            work.moved[path] = None


def erase_journal(work: Erasure) -> None:
    """Entries of unfinished runs."""
    for path in work.store.files(FOLDER):
        table = read_parquet(work.store.read(path))
        listed = json.loads((table.schema.metadata or {}).get(FILES_KEY, b"[]"))
        kept = without(table.replace_schema_metadata(None), work.ids)
        if kept.num_rows == table.num_rows and not any(row["path"] in work.moved for row in listed):
            continue
        files = [row for row in map(work.row, listed) if row is not None]
        if kept.num_rows:
            name = path.rpartition("/")[2].rpartition("-")[0]
            write_entry(work.store, name, kept.cast(LEDGER), pa.Table.from_pylist(files, schema=FILES))
        work.moved[path] = None


def erase_reports(work: Erasure) -> None:
    """Names in run reports."""
    for path in work.store.files("runs"):
        before = text = work.store.read(path).decode("utf-8", errors="replace")
        for volume_id in sorted(work.ids, key=len, reverse=True):
            text = text.replace(json.dumps(volume_id)[1:-1], FORGOTTEN).replace(volume_id, FORGOTTEN)
        if text != before:
            folder, _, name = path.rpartition("/")
            work.store.write_named(folder, name.rpartition("-")[0], ".json", text.encode())
            work.moved[path] = None


def _erase_table(work: Erasure, path: str) -> None:
    table = read_parquet(work.store.read(path))
    kept = without(table, work.ids)
    if kept.num_rows == table.num_rows:
        return
    work.lease.check()
    work.moved[path] = None
    if kept.num_rows:
        folder, _, name = path.rpartition("/")
        written = work.store.write_named(folder, name.rpartition("-")[0], ".parquet", parquet_bytes(kept))
        work.moved[path] = {**vars(written), "rows": kept.num_rows}


def _erase_index(work: Erasure, folder: str, members: Mapping[str, Mapping[str, Any]], settings: IndexSettings) -> None:
    """Build an index shard anew, out of the vectors that it holds itself: FAISS's graphs cannot let go of one."""
    rows_file, exact_file = members[ROWS_KIND], members[EXACT]
    data = read_checked(work.store, rows_file["path"], rows_file["sha256"])
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    alive = np.array([volume_id not in work.ids for volume_id in table["volume_id"].to_pylist()], bool)
    if alive.all():
        return
    work.lease.check()
    work.moved |= {row["path"]: None for row in members.values()}
    if not alive.any():
        return
    vectors = exact_vectors(read_checked(work.store, exact_file["path"], exact_file["sha256"]))[alive]
    rows = table.select(ROWS.names).take(pa.array(np.flatnonzero(alive))).cast(ROWS)
    built = build_shard(work.store, folder, vectors, rows, settings)
    for kind, written in built.files:
        facts = {"rows": built.rows, "shard": built.shard, "recall": built.recall.get(kind)}
        work.moved[members[kind]["path"]] = {**vars(written), **facts}
