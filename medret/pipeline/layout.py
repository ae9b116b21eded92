"""Which files a snapshot consists of: what is kept, what is made anew, and which rows of kept files are dead.

Pure functions over tables. An embedding shard is live as far as the ledger points to it; a row that it does not point
to is dead. Index shards are unions of whole embedding files, kept as long as few of their rows are dead: those rows are
listed as tombstones, which every search leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medret.index import IndexSettings, plan_shards
from medret.pipeline.store_state import BaseSnapshot
from medret.schemas import FILES, TOMBSTONES

DEAD_SHARE = 0.2  # of a shard's rows; beyond it, the shard is made anew of its live rows
SMALL_SHARE = 0.25  # of the intended size; smaller shards are merged
SMALL_EMBEDDING_SHARDS = 8  # so many small ones may lie about before they are merged


@dataclass
class Live:
    """The volumes of one embedding shard that the ledger points to. slices: their slice vectors."""

    volumes: list[str] = field(default_factory=list)
    slices: int = 0


@dataclass(frozen=True)
class EmbeddingFile:
    """A slices or volumes file of the snapshot.

    rows: in the file. live_rows: of volumes that are still there. only: their ids; None when no row is dead.
    """

    path: str
    sha256: str
    shard: str
    rows: int
    live_rows: int
    indexed_in: str | None
    only: frozenset[str] | None


@dataclass(frozen=True)
class IndexPlan:
    """What one index consists of. kept: keys of index shards. built: the files of each shard to build."""

    kept: tuple[str, ...]
    built: tuple[tuple[EmbeddingFile, ...], ...]


LiveShards = Mapping[tuple[str, str], Live]  # (recipe digest, embedding shard) -> what lives in it


def live_shards(ledger: pa.Table) -> dict[tuple[str, str], Live]:
    """What the ledger (schemas.LEDGER) points to."""
    found: dict[tuple[str, str], Live] = {}
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded"))
    columns = (embedded[name].to_pylist() for name in ("volume_id", "slices", "shards"))
    for volume_id, slices, shards in zip(*columns, strict=True):
        for key in shards:
            live = found.setdefault(key, Live())
            live.volumes.append(volume_id)
            live.slices += slices
    return found


def embedding_files(
    pool: pa.Table, live: LiveShards, aggregations: Sequence[str]
) -> tuple[pa.Table, list[tuple[str, str, dict[str, Any], list[str]]]]:
    """Of all files at hand (schemas.FILES, earlier rows first), those that the snapshot needs.

    Also what is lacking: (recipe, shard, row of the slices file, aggregations) of shards without some volume vectors.
    """
    chosen: dict[tuple[str, str], dict[str | None, dict[str, Any]]] = {key: {} for key in live}
    for row in pool.filter(pc.is_in(pool["kind"], pa.array(["slices", "volumes"]))).to_pylist():
        of_shard = chosen.get((row["recipe"], row["shard"]))
        if of_shard is not None and (row["kind"] == "slices" or row["aggregation"] in aggregations):
            of_shard.setdefault(row["aggregation"], row)
    lacking = []
    for (recipe, shard), found in chosen.items():
        missing = [name for name in aggregations if name not in found]
        if missing:
            lacking.append((recipe, shard, found[None], missing))
    rows = [row for found in chosen.values() for row in found.values()]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["path"])), schema=FILES), lacking


def compactions(files: pa.Table, live: LiveShards, recipe: str, shard_volumes: int) -> list[list[tuple[str, str, str]]]:
    """Embedding shards of a recipe to be written anew, together: groups of (path, sha256, shard) of slices files.

    Shards with too many dead rows, and small ones when there are many. At most `shard_volumes` live volumes a group.
    """
    chosen: list[tuple[int, tuple[str, str, str]]] = []
    small: list[tuple[int, tuple[str, str, str]]] = []
    of_recipe = files.filter(pc.and_(pc.equal(files["recipe"], recipe), pc.equal(files["kind"], "slices")))
    for row in of_recipe.sort_by("path").to_pylist():
        held = live[recipe, row["shard"]]
        entry = (len(held.volumes), (row["path"], row["sha256"], row["shard"]))
        if _dead_share(row["rows"], held.slices) > DEAD_SHARE:
            chosen.append(entry)
        elif len(held.volumes) < SMALL_SHARE * shard_volumes:
            small.append(entry)
    if len(small) >= SMALL_EMBEDDING_SHARDS:
        chosen += small
    groups: list[list[tuple[str, str, str]]] = []
    room = 0
    for volumes, source in chosen:
        if not groups or volumes > room:
            groups.append([])
            room = shard_volumes
        groups[-1].append(source)
        room -= volumes
    return groups


def index_files(files: pa.Table, live: LiveShards, recipe: str, aggregation: str | None) -> list[EmbeddingFile]:
    """The files of one index, in the order of their shards' keys."""
    found = []
    for row in files.filter(pc.equal(files["recipe"], recipe)).to_pylist():
        if row["aggregation"] != aggregation:
            continue
        held = live[recipe, row["shard"]]
        alive = held.slices if aggregation is None else len(held.volumes)
        only = None if alive == row["rows"] else frozenset(held.volumes)
        found.append(
            EmbeddingFile(row["path"], row["sha256"], row["shard"], row["rows"], alive, row["indexed_in"], only)
        )
    return sorted(found, key=lambda file: file.shard)


def plan_index(files: Sequence[EmbeddingFile], shards: Mapping[str, int], settings: IndexSettings) -> IndexPlan:
    """Which index shards are kept and which are built.

    shards: key -> rows, of the shards that were built with these very settings. What fits one shard becomes one shard
    without dead rows, so that a small archive's index does not depend on how it came about.
    """
    live: dict[str, int] = dict.fromkeys(shards, 0)
    for file in files:
        if file.indexed_in in live:
            live[file.indexed_in] += file.live_rows
    if sum(file.live_rows for file in files) <= settings.shard_rows:
        whole = [key for key, rows in shards.items() if live[key] == rows]
        if len(whole) == 1 and all(file.indexed_in == whole[0] for file in files):
            return IndexPlan((whole[0],), ())
        return IndexPlan((), (tuple(files),) if files else ())
    kept = {key for key, rows in shards.items() if live[key] and _dead_share(rows, live[key]) <= DEAD_SHARE}
    small = {key for key in kept if live[key] < SMALL_SHARE * settings.shard_rows}
    if len(small) > 1 or any(file.indexed_in not in kept for file in files):
        kept -= small
    loose = {file.path: file for file in files if file.indexed_in not in kept}
    groups = plan_shards([(path, file.live_rows) for path, file in loose.items()], settings.shard_rows)
    return IndexPlan(tuple(sorted(kept)), tuple(tuple(loose[path] for path in group) for group in groups))


def findable(files: pa.Table, before: BaseSnapshot, live: LiveShards) -> pa.Table:
    """The files (schemas.FILES), those named as not indexed of which a live volume has no row in their index shard.

    That happens where vectors live again that were dead when the shard was built, or that lie under a tombstone.
    """
    shown = live_shards(before.ledger)
    hidden: dict[str, set[str]] = {}
    for row in before.tombstones.to_pylist():
        hidden.setdefault(row["shard"], set()).add(row["volume_id"])
    held = []
    for row in files.select(["recipe", "shard", "indexed_in"]).to_pylist():
        key, index = (row["recipe"], row["shard"]), row["indexed_in"]
        if index and key in live:
            found = set(shown[key].volumes if key in shown else ()) - hidden.get(index, set())
            index = index if found.issuperset(live[key].volumes) else None
        held.append(index)
    return files.set_column(FILES.get_field_index("indexed_in"), FILES.field("indexed_in"), pa.array(held, pa.string()))


def tombstones(kept: Iterable[str], before: BaseSnapshot, files: pa.Table, live: LiveShards) -> pa.Table:
    """The dead rows of kept index shards (schemas.TOMBSTONES): all their rows but those of what lives in them.

    files: embedding files of the new snapshot, as far as they are still indexed where they were. live: what lives.
    """
    keys = set(kept)
    held, holding = _indexed(before.files, keys), _indexed(files, keys)
    alive = {key: frozenset(live[key].volumes) for key in holding}
    dead = {(row["shard"], row["volume_id"]) for row in before.tombstones.to_pylist() if row["shard"] in keys}
    if held:
        columns = (before.ledger[name].to_pylist() for name in ("volume_id", "shards"))
        for volume_id, shards in zip(*columns, strict=True):
            for key in shards or ():
                still = holding.get(key, frozenset()) if volume_id in alive.get(key, ()) else frozenset()
                dead |= {(index, volume_id) for index in held.get(key, frozenset()) - still}
    for key, indices in holding.items():
        dead -= {(index, volume_id) for index in indices for volume_id in alive[key]}
    rows = [{"shard": index, "volume_id": volume_id} for index, volume_id in sorted(dead)]
    return pa.Table.from_pylist(rows, schema=TOMBSTONES)


def _indexed(files: pa.Table, keys: AbstractSet[str]) -> dict[tuple[str, str], frozenset[str]]:
    """(recipe digest, embedding shard) -> those of these index shards that hold its vectors."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in files.filter(pc.is_in(files["indexed_in"], pa.array(sorted(keys), pa.string()))).to_pylist():
        found.setdefault((row["recipe"], row["shard"]), set()).add(row["indexed_in"])
    return {key: frozenset(indices) for key, indices in found.items()}


def _dead_share(rows: int, live: int) -> float:
    return (rows - live) / rows if rows else 0.0
