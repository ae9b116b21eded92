"""Tell which file holds a volume's vectors, and which rows of a file are live.

The ledger assigns each volume to one embedding shard per recipe. Its rows there are live; all other rows of the files
are dead. Index shards hold the rows of whole embedding files; tombstones list the dead rows among them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from medret.index import ROWS_KIND, read_rows
from medret.snapshot.files import EMBEDDING_KINDS, ShardKey, StoredFile, stored_files
from medret.storage import Location

LIVE_COLUMNS = ["volume_id", "slices", "shards"]  # columns of the ledger that decide which rows are live


@dataclass
class LiveShard:
    """The live volumes of one embedding shard. volumes: volume_id -> number of its slice vectors."""

    volumes: dict[str, int] = field(default_factory=dict)

    @property
    def slices(self) -> int:
        """Number of live rows in the slices file."""
        return sum(self.volumes.values())

    def rows(self, file: StoredFile) -> int:
        """Number of live rows in one of the shard's files."""
        return len(self.volumes) if file.aggregation else self.slices


LiveShards = Mapping[ShardKey, LiveShard]


@dataclass(frozen=True)
class LiveFile:
    """An embedding file. live_rows: number of live rows. only: ids of the live volumes; None if no row is dead."""

    file: StoredFile
    live_rows: int
    only: frozenset[str] | None = None


def live_shards(ledger: pa.Table, recipe: str | None = None) -> dict[ShardKey, LiveShard]:
    """Return the embedding shards in a ledger (LIVE_COLUMNS of it). recipe: digest, to return only its shards."""
    live: dict[ShardKey, LiveShard] = {}
    for volume_id, slices, shards in zip(*(ledger[name].to_pylist() for name in LIVE_COLUMNS), strict=True):
        for key in shards or ():
            if recipe is None or key[0] == recipe:
                live.setdefault(key, LiveShard()).volumes[volume_id] = slices
    return live


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
        rows = shard.rows(file)
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
