"""Which file holds a volume's vectors, and which of its rows live.

The ledger points from each volume to one embedding shard per recipe: these rows live, all other rows of the files are
dead. Index shards hold the rows of whole embedding files; dead rows among them are listed as tombstones.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from medret.index import ROWS_KIND, read_rows
from medret.snapshot.files import EMBEDDING_KINDS, ShardKey, StoredFile, stored_files
from medret.storage import Location

LIVE_COLUMNS = ["volume_id", "slices", "shards"]  # of the ledger, that liveness follows from


@dataclass
class LiveShard:
    """The live volumes of one embedding shard. volumes: volume_id -> number of its slice vectors."""

    volumes: dict[str, int] = field(default_factory=dict)

    @property
    def slices(self) -> int:
        """Live rows of the slices file."""
        return sum(self.volumes.values())

    def rows(self, file: StoredFile) -> int:
        """Live rows of one of the shard's files."""
        return len(self.volumes) if file.aggregation else self.slices


LiveShards = Mapping[ShardKey, LiveShard]


@dataclass(frozen=True)
class LiveFile:
    """An embedding file of the snapshot. live_rows: of volumes that live. only: their ids; None when no row is dead."""

    file: StoredFile
    live_rows: int
    only: frozenset[str] | None = None


def live_shards(ledger: pa.Table, recipe: str | None = None) -> dict[ShardKey, LiveShard]:
    """The embedding shards that the ledger (LIVE_COLUMNS of schemas.LEDGER) points to. recipe: only its shards."""
    live: dict[ShardKey, LiveShard] = {}
    for volume_id, slices, shards in zip(*(ledger[name].to_pylist() for name in LIVE_COLUMNS), strict=True):
        for key in shards or ():
            if recipe is None or key[0] == recipe:
                live.setdefault(key, LiveShard()).volumes[volume_id] = slices
    return live


def live_rows(table: pa.Table, volumes: Container[str]) -> pa.Table:
    """The rows of an embedding file that are of these volumes."""
    ids = table["volume_id"].to_pylist()
    alive = np.fromiter((volume_id in volumes for volume_id in ids), bool, len(ids))
    return table if alive.all() else table.take(pa.array(np.flatnonzero(alive)))


def live_files(files: pa.Table, live: LiveShards, recipe: str, aggregation: str | None) -> list[LiveFile]:
    """The embedding files (schemas.FILES) that one index is over, in the order of their shards' keys."""
    found = []
    for file in stored_files(files, EMBEDDING_KINDS, recipe=recipe, aggregation=aggregation):
        shard = live[file.key]
        rows = shard.rows(file)
        found.append(LiveFile(file, rows, None if rows == file.rows else frozenset(shard.volumes)))
    return sorted(found, key=lambda member: member.file.key)


def dead_volumes(tombstones: pa.Table) -> dict[str, set[str]]:
    """Index shard -> the volumes whose rows in it are dead (tombstones: schemas.TOMBSTONES)."""
    dead: dict[str, set[str]] = {}
    for shard, volume_id in zip(tombstones["shard"].to_pylist(), tombstones["volume_id"].to_pylist(), strict=True):
        dead.setdefault(shard, set()).add(volume_id)
    return dead


def searchable_rows(
    store: Location, files: pa.Table, tombstones: pa.Table, recipe: str, aggregation: str | None
) -> int | None:
    """Rows of an index that are not under a tombstone; None where the snapshot has no index files."""
    dead = dead_volumes(tombstones)
    members = stored_files(files, [ROWS_KIND], recipe=recipe, aggregation=aggregation)
    found = sum(file.rows for file in members)
    for file in members:
        if volumes := dead.get(file.shard or ""):
            ids = read_rows(store.read(file.path), file.path)["volume_id"]
            found -= sum(volume_id in volumes for volume_id in ids.to_pylist())
    return found if members else None
