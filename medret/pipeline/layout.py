"""Lay out the vectors of a snapshot: copies, compacted shards, which files to keep or build, and which rows are dead.

A row of an embedding shard is live if the ledger points to it, else it is dead. An index shard is built from whole
embedding files, and kept while few of its rows are dead: those are listed as tombstones, which every search leaves out.
What is kept and what is built is decided by pure functions over tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from medret.embeddings import Aggregation
from medret.index import IndexSettings, plan_shards
from medret.pipeline.embedding_shards import Derive, Refused, Rewrite, Source, derive_all, rewrite_all
from medret.pipeline.new_ledger import NewLedger
from medret.pipeline.plan import Plan
from medret.pipeline.store_state import BaseSnapshot
from medret.recipe import Recipe
from medret.schemas import FILES, TOMBSTONES
from medret.snapshot.files import (
    EMBEDDING_KINDS,
    LIVE_COLUMNS,
    SHARD_KINDS,
    SLICES,
    VOLUMES,
    LiveFile,
    LiveShards,
    ShardKey,
    StoredFile,
    dead_volumes,
    files_table,
    live_shards,
    previews_files,
    shards_of,
    slices_files,
    stored_files,
)
from medret.storage import Location

DEAD_SHARE = 0.2  # of the rows of a shard; with more, its live rows are written to a new shard
SMALL_SHARE = 0.25  # of the intended size; smaller shards are merged
SMALL_EMBEDDING_SHARDS = 8  # small ones are merged when there are at least this many


@dataclass(frozen=True)
class Live:
    """Where the vectors of the new snapshot lie.

    rows: its ledger (files.LIVE_COLUMNS). shards: the live volumes of each embedding shard. touched: the shards that
    rows of the ledger point to that differ from those of the live snapshot, before or now.
    """

    rows: pa.Table
    shards: LiveShards
    touched: AbstractSet[ShardKey]


@dataclass(frozen=True)
class Layout:
    """The new ledger, the embedding files that it needs, and where its vectors lie."""

    ledger: NewLedger
    files: pa.Table
    live: Live

    @property
    def vectors(self) -> int:
        """How many rows its slices and volumes files have."""
        return sum(file.rows for file in stored_files(self.files, EMBEDDING_KINDS))


@dataclass(frozen=True)
class ShardPlan:
    """The shards of one index. kept: keys of stored shards. built: the embedding files of each shard to build."""

    kept: tuple[str, ...]
    built: tuple[tuple[LiveFile, ...], ...]


def copy_vectors(
    store: Location, plan: Plan, made: pa.Table, pool: pa.Table, recipes: Sequence[Recipe],
    aggregations: Sequence[Aggregation], shard_volumes: int,
) -> tuple[dict[tuple[str, str], str], pa.Table, Refused]:  # fmt: skip
    """Copy vectors of renamed volumes to their new names; returns as `rewrite_all`. made: ledger rows of the stream."""
    leaders = made.filter(pc.is_in(made["volume_id"], value_set=plan.table["leader"].unique()))
    made_of = dict(zip(leaders["volume_id"].to_pylist(), leaders["shards"].to_pylist(), strict=True))
    names = plan.state.rows["volume_id"]
    copies_of: dict[str, list[tuple[str, str, str]]] = {recipe.digest: [] for recipe in recipes}
    for step in plan.of("copy"):
        if step.leader is None:
            assert step.row is not None
            source, stored = names[step.row].as_py(), dict(step.shards)
        else:
            source, stored = step.leader, dict(made_of[step.leader])
        for digest, shard in stored.items():
            copies_of[digest].append((shard, source, step.item.volume_id))
    slices, previews = slices_files(pool), previews_files(pool)
    jobs = []
    for recipe in recipes:
        copies = copies_of[recipe.digest]
        for at in range(0, len(copies), shard_volumes):
            by_shard: dict[str, list[tuple[str, str]]] = {}
            for shard, old, new in copies[at : at + shard_volumes]:
                by_shard.setdefault(shard, []).append((old, new))
            keyed = (((recipe.digest, shard), tuple(pairs)) for shard, pairs in by_shard.items())
            sources = (Source(slices[key], pairs, previews.get(key)) for key, pairs in keyed)
            jobs.append(Rewrite(recipe, tuple(sources)))
    return rewrite_all(store, jobs, aggregations)


def lay_out(
    store: Location, ledger: NewLedger, pool: pa.Table, recipes: Sequence[Recipe],
    aggregations: Sequence[Aggregation], shard_volumes: int, ruleset_digest: str,
) -> Layout:  # fmt: skip
    """Compact shards with dead or few volumes, derive missing volume vectors, and choose the files of the snapshot.

    pool: all stored and new embedding files (schemas.FILES). Volumes that lack a vector of some aggregation go into
    quarantine.
    """
    names = [aggregation.name for aggregation in aggregations]
    live = live_shards(ledger.select(*LIVE_COLUMNS))
    files, _ = embedding_files(pool, live, names)
    previews = previews_files(files)
    jobs = [
        Rewrite(recipe, tuple(_whole(live, file, previews.get(file.key)) for file in group))
        for recipe in recipes
        for group in compactions(files, live, recipe.digest, shard_volumes)
    ]
    if jobs:
        moved, added, refused = rewrite_all(store, jobs, aggregations)
        ledger = ledger.moved(moved).refused(refused, ruleset_digest)
        live, pool = live_shards(ledger.select(*LIVE_COLUMNS)), pa.concat_tables([pool, added])
    files, lacking = embedding_files(pool, live, names)
    if lacking:
        by_digest, by_name = {recipe.digest: recipe for recipe in recipes}, dict(zip(names, aggregations, strict=True))
        derived, refusals = derive_all(
            store,
            [
                Derive(by_digest[file.key[0]], file, tuple(by_name[name] for name in missing))
                for file, missing in lacking
            ],
        )
        refused = {}
        for (file, _), refusal in zip(lacking, refusals, strict=True):
            if refusal:
                alive = live[file.key].volumes
                refused |= {volume_id: error for volume_id, error in refusal.items() if volume_id in alive}
        ledger = ledger.refused(refused, ruleset_digest)
        pool = pa.concat_tables([pool, derived])
    rows = ledger.select(*LIVE_COLUMNS)
    live = live_shards(rows)
    files, _ = embedding_files(pool, live, names)
    return Layout(ledger, files, Live(rows, live, ledger.touched))


def _whole(live: LiveShards, file: StoredFile, previews: StoredFile | None) -> Source:
    return Source(file, tuple((volume_id, volume_id) for volume_id in live[file.key].volumes), previews)


def embedding_files(
    pool: pa.Table, live: LiveShards, aggregations: Sequence[str]
) -> tuple[pa.Table, list[tuple[StoredFile, list[str]]]]:
    """Choose the embedding files that the snapshot needs. pool: all files (schemas.FILES); the first of a kind wins.

    Returns them, and the slices file of each shard that lacks volume vectors, with the missing aggregations.
    """
    chosen: dict[ShardKey, dict[tuple[str, str | None], StoredFile]] = {key: {} for key in live}
    for file in stored_files(pool, SHARD_KINDS):
        of_shard = chosen.get(file.key)
        if of_shard is not None and (file.kind != VOLUMES or file.aggregation in aggregations):
            of_shard.setdefault((file.kind, file.aggregation), file)
    lacking = []
    for of_shard in chosen.values():
        missing = [name for name in aggregations if (VOLUMES, name) not in of_shard]
        if missing:
            lacking.append((of_shard[SLICES, None], missing))
    files = [file for of_shard in chosen.values() for file in of_shard.values()]
    return files_table(sorted(files, key=lambda file: file.path)), lacking


def compactions(files: pa.Table, live: LiveShards, recipe: str, shard_volumes: int) -> list[list[StoredFile]]:
    """Group slices files of a recipe whose live volumes should be written together as one new shard.

    Chooses shards with too many dead rows, and small shards if there are many. A group has at most `shard_volumes` live
    volumes, unless a single shard has more.
    """
    chosen: list[StoredFile] = []
    small: list[StoredFile] = []
    for file in sorted(stored_files(files, [SLICES], recipe=recipe), key=lambda file: file.path):
        shard = live[file.key]
        if _dead_share(file.rows, shard.slices) > DEAD_SHARE:
            chosen.append(file)
        elif shard.count < SMALL_SHARE * shard_volumes:
            small.append(file)
    if len(small) >= SMALL_EMBEDDING_SHARDS:
        chosen += small
    groups: list[list[StoredFile]] = []
    room = 0
    for file in chosen:
        volumes = live[file.key].count
        if not groups or volumes > room:
            groups.append([])
            room = shard_volumes
        groups[-1].append(file)
        room -= volumes
    return groups


def plan_index_shards(files: Sequence[LiveFile], shards: Mapping[str, int], settings: IndexSettings) -> ShardPlan:
    """Choose which index shards to keep and which to build.

    shards: key -> rows of the stored shards with exactly these settings. If all rows fit into one shard, the index is
    one shard without dead rows: the index of a small archive does not depend on its history.
    """
    live: dict[str, int] = dict.fromkeys(shards, 0)
    for member in files:
        if member.file.indexed_in in live:
            live[member.file.indexed_in] += member.live_rows
    if sum(member.live_rows for member in files) <= settings.shard_rows:
        whole = [key for key, rows in shards.items() if live[key] == rows]
        if len(whole) == 1 and all(member.file.indexed_in == whole[0] for member in files):
            return ShardPlan((whole[0],), ())
        return ShardPlan((), (tuple(files),) if files else ())
    kept = {key for key, rows in shards.items() if live[key] and _dead_share(rows, live[key]) <= DEAD_SHARE}
    small = {key for key in kept if live[key] < SMALL_SHARE * settings.shard_rows}
    if len(small) > 1 or any(member.file.indexed_in not in kept for member in files):
        kept -= small
    loose = {member.file.path: member for member in files if member.file.indexed_in not in kept}
    groups = plan_shards([(path, member.live_rows) for path, member in loose.items()], settings.shard_rows)
    return ShardPlan(tuple(sorted(kept)), tuple(tuple(loose[path] for path in group) for group in groups))


def findable(files: pa.Table, base: BaseSnapshot, live: Live) -> pa.Table:
    """Clear `indexed_in` of files (schemas.FILES) with a live volume that has no searchable row in their index shard.

    That happens when a volume returns that was dead when the shard was built, or whose row is a tombstone.
    """
    dead = dead_volumes(base.tombstones)
    suspects = live.touched | shards_of(live.rows, set().union(*dead.values()))
    indexed = {file.key for file in stored_files(files.filter(pc.is_valid(files["indexed_in"])))} & suspects
    if not indexed:
        return files
    shown = live_shards(base.ledger)
    indexed_in = []
    for file in stored_files(files):
        index = file.indexed_in
        if index and file.key in indexed and file.key in live.shards:
            searchable = set(shown[file.key].volumes if file.key in shown else ()) - dead.get(index, set())
            index = index if searchable.issuperset(live.shards[file.key].volumes) else None
        indexed_in.append(index)
    return with_indexed_in(files, indexed_in)


def with_indexed_in(files: pa.Table, indexed_in: Sequence[str | None]) -> pa.Table:
    """Set the index shard that holds the vectors of each file (schemas.FILES)."""
    name = "indexed_in"
    return files.set_column(FILES.get_field_index(name), FILES.field(name), pa.array(indexed_in, pa.string()))


def tombstones(kept: Iterable[str], base: BaseSnapshot, files: pa.Table, live: Live) -> pa.Table:
    """List the dead rows of kept index shards (schemas.TOMBSTONES): all rows except those of their live volumes.

    kept: keys of index shards. files: embedding files of the new snapshot, `indexed_in` set. Reads the volumes only of
    embedding shards that lost some, or that lie in other index shards than before.
    """
    keys = set(kept)
    before, now = _indexed(base.files, keys), _indexed(files, keys)
    dead = {(index, one) for index, ids in dead_volumes(base.tombstones).items() if index in keys for one in ids}
    changed = [key for key, indices in before.items() if key in live.touched or indices - now.get(key, frozenset())]
    shown = live_shards(base.ledger) if changed else {}
    for key in changed:
        alive = live.shards[key].volumes if key in live.shards else {}
        for volume_id in shown[key].volumes if key in shown else ():
            still = now.get(key, frozenset()) if volume_id in alive else frozenset()
            dead |= {(index, volume_id) for index in before[key] - still}
    for key in shards_of(live.rows, {volume_id for _, volume_id in dead}) & now.keys():
        dead -= {(index, volume_id) for index in now[key] for volume_id in live.shards[key].volumes}
    rows = [{"shard": index, "volume_id": volume_id} for index, volume_id in sorted(dead)]
    return pa.Table.from_pylist(rows, schema=TOMBSTONES)


def _indexed(files: pa.Table, keys: AbstractSet[str]) -> dict[ShardKey, frozenset[str]]:
    """(recipe digest, embedding shard) -> the index shards, among `keys`, that hold its vectors."""
    indices: dict[ShardKey, set[str]] = {}
    for file in stored_files(files.filter(pc.is_in(files["indexed_in"], pa.array(sorted(keys), pa.string())))):
        indices.setdefault(file.key, set()).add(file.indexed_in or "")
    return {key: frozenset(shards) for key, shards in indices.items()}


def _dead_share(rows: int, live: int) -> float:
    return (rows - live) / rows if rows else 0.0
