"""Tell which file holds a volume's vectors, and which rows of a file are live.

The ledger assigns each volume to one embedding shard per recipe. Its rows there are live; all other rows of the files
are dead. Index shards hold the rows of whole embedding files; tombstones list the dead rows among them.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.index import ROWS_KIND, read_rows
from medret.snapshot.files import EMBEDDING_KINDS, ShardKey, StoredFile, stored_files
from medret.storage import Location

LIVE_COLUMNS = ["volume_id", "slices", "shards"]  # columns of the ledger that decide which rows are live


@dataclass(frozen=True)
class Entries:
    """The vectors that the rows of a ledger point to: one entry per volume and recipe, as arrays of one length.

    rows: row of the ledger. places: the embedding shard, as its place in `keys`.
    """

    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    keys: Sequence[ShardKey]


def entries(shards: pa.ChunkedArray) -> Entries:
    """Flatten the column `shards` of a ledger."""
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    texts = pa.field("key", shards.type.key_type, nullable=False), pa.field("value", shards.type.item_type)
    lists = [chunk.cast(pa.list_(pa.struct(texts))) for chunk in shards.chunks]
    firsts = np.cumsum([0, *map(len, lists)])
    rows = [first + pc.list_parent_indices(pairs).to_numpy() for first, pairs in zip(firsts, lists, strict=False)]
    names, codes = [], []
    for part in (0, 1):  # recipes, then shards
        texts = pa.chunked_array([pc.list_flatten(pairs).field(part) for pairs in lists], shards.type.key_type)
        coded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
        coded = coded.unify_dictionaries().combine_chunks()
        names.append(coded.dictionary.to_pylist())
        codes.append(coded.indices.to_numpy().astype(np.int64))
    pairs, places = np.unique(codes[0] * len(names[1]) + codes[1], return_inverse=True)
    keys = [(names[0][pair // len(names[1])], names[1][pair % len(names[1])]) for pair in pairs.tolist()]
    return Entries(np.concatenate([np.zeros(0, np.int64), *rows]), places, keys)


@dataclass(frozen=True)
class LiveShard:
    """The live volumes of one embedding shard.

    count: their number. slices: number of live rows in the slices file. rows: their rows in `ledger` (LIVE_COLUMNS).
    """

    count: int
    slices: int
    rows: NDArray[np.int64]
    ledger: pa.Table

    @property
    def volumes(self) -> dict[str, int]:
        """volume_id -> number of its slice vectors; read from the ledger each time."""
        ids, slices = self.ledger["volume_id"], self.ledger["slices"]
        return {ids[row].as_py(): slices[row].as_py() for row in self.rows.tolist()}

    def live_rows(self, file: StoredFile) -> int:
        """Number of live rows in one of the shard's files."""
        return self.count if file.aggregation else self.slices


LiveShards = Mapping[ShardKey, LiveShard]


@dataclass(frozen=True)
class LiveFile:
    """An embedding file. live_rows: number of live rows. only: ids of the live volumes; None if no row is dead."""

    file: StoredFile
    live_rows: int
    only: frozenset[str] | None = None


def live_shards(ledger: pa.Table, recipe: str | None = None) -> dict[ShardKey, LiveShard]:
    """Return the embedding shards in a ledger (LIVE_COLUMNS of it). recipe: digest, to return only its shards."""
    found = entries(ledger["shards"])
    order = np.argsort(found.places, kind="stable")
    rows, counts = found.rows[order], np.bincount(found.places, minlength=len(found.keys))
    slices = ledger["slices"].to_numpy().astype(np.int64)[rows]
    ends = np.cumsum(counts)
    sums = np.diff(np.concatenate([[0], np.cumsum(slices)])[np.concatenate([[0], ends])])
    pieces = np.split(rows, ends[:-1]) if len(ends) else []
    ledger = ledger.select(["volume_id", "slices"])
    live = zip(found.keys, counts.tolist(), sums.tolist(), pieces, strict=True)
    return {key: LiveShard(count, total, own, ledger) for key, count, total, own in live if recipe in (None, key[0])}


def shards_of(ledger: pa.Table, volume_ids: Collection[str]) -> frozenset[ShardKey]:
    """Return the embedding shards with vectors of these volumes (ledger: LIVE_COLUMNS)."""
    import pyarrow.compute as pc

    chosen = pc.is_in(ledger["volume_id"], value_set=pa.array(list(volume_ids), pa.string()))
    return frozenset(entries(ledger["shards"].filter(chosen)).keys)


def live_rows(table: pa.Table, volumes: Container[str]) -> pa.Table:
    """Select the rows of an embedding file that belong to these volumes."""
    ids = table["volume_id"].to_pylist()
    alive = np.fromiter((volume_id in volumes for volume_id in ids), bool, len(ids))
    return table if alive.all() else table.take(pa.array(np.flatnonzero(alive)))


def live_files(files: pa.Table, live: LiveShards, recipe: str, aggregation: str | None) -> list[LiveFile]:
    """Return the embedding files (schemas.FILES) that one index covers, sorted by shard key."""
    members = []
    for file in stored_files(files, EMBEDDING_KINDS, recipe=recipe, aggregation=aggregation):
        shard = live[file.key]
        rows = shard.live_rows(file)
        members.append(LiveFile(file, rows, None if rows == file.rows else frozenset(shard.volumes)))
    return sorted(members, key=lambda member: member.file.key)


def dead_volumes(tombstones: pa.Table) -> dict[str, set[str]]:
    """Map each index shard to the volumes whose rows in it are dead (tombstones: schemas.TOMBSTONES)."""
    dead: dict[str, set[str]] = {}
    for shard, volume_id in zip(tombstones["shard"].to_pylist(), tombstones["volume_id"].to_pylist(), strict=True):
        dead.setdefault(shard, set()).add(volume_id)
    return dead


def searchable_rows(
    store: Location, files: pa.Table, tombstones: pa.Table, recipe: str, aggregation: str | None
) -> int | None:
    """Count the rows of an index that have no tombstone; None if the snapshot has no index files."""
    dead = dead_volumes(tombstones)
    members = stored_files(files, [ROWS_KIND], recipe=recipe, aggregation=aggregation)
    searchable = sum(file.rows for file in members)
    for file in members:
        if volumes := dead.get(file.shard or ""):
            ids = read_rows(store.read(file.path), file.path)["volume_id"]
            searchable -= sum(volume_id in volumes for volume_id in ids.to_pylist())
    return searchable if members else None
