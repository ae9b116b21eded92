"""Make the vectors of a run: with models from volumes, and from stored vectors by copies and compaction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.embeddings import Aggregation
from medret.pipeline.batch_schema import CANARIES, SOURCE
from medret.pipeline.cluster import asking
from medret.pipeline.embedding_shards import Derive, Refused, Rewrite, Source, derive_all, rewrite_all
from medret.pipeline.judge import choose_canaries
from medret.pipeline.layout import Live, compactions, embedding_files
from medret.pipeline.new_ledger import NewLedger
from medret.pipeline.pools import Capacity, PoolPlan, Wish, plan_pools, wishes
from medret.pipeline.request import IndexRequest
from medret.pipeline.steps import Plan, recipes_of
from medret.pipeline.store_state import rows_of
from medret.pipeline.stream import ModelJob, Stages, Streamed, block_volumes, stream
from medret.recipe import Recipe
from medret.schemas import FILES, LEDGER
from medret.snapshot.files import EMBEDDING_KINDS, StoredFile, previews_files, slices_files, stored_files
from medret.snapshot.liveness import LIVE_COLUMNS, LiveShards, live_shards
from medret.storage import Location


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
class Work:
    """The input of one stream: objects (batch_schema.SOURCE), the models to embed them with, actors per model.

    asked: what the autoscaler is asked for meanwhile.
    """

    source: pa.Table
    jobs: tuple[ModelJob, ...]
    pools: PoolPlan
    asked: tuple[Wish, ...] = ()


def divide_work(plan: Plan, jobs: Sequence[ModelJob], capacity: Capacity, request: IndexRequest) -> list[Work]:
    """Group the volumes to embed by the models that they lack, usually into one stream. Raises UsageError."""
    places = np.flatnonzero(plan.which("embed"))
    lacks = plan.table["missing"].to_numpy()
    groups = {bits: places[lacks[places] == bits] for bits in np.unique(lacks[places]).tolist()}
    if not groups and needs_models(plan):  # a run was killed after embedding, before its canaries were judged
        groups[(1 << len(jobs)) - 1] = places
    works = []
    for bits, chosen in groups.items():
        missing = recipes_of(bits, plan.target.recipes)
        lacking = tuple(job for job in jobs if job.recipe.digest in missing)
        device = lacking[0].device
        source = source_of(plan, chosen, choose_canaries(plan))
        costs = [job.spec.gmacs for job in lacking]
        calls = max(1, math.ceil(source.num_rows / block_volumes(source, device, request.slices)))
        pools = plan_pools(capacity, costs, device, calls, actors=request.actors, gpus_per_actor=request.gpus_per_actor)
        asked = wishes(pools, costs, calls, request.expect) if capacity.grows else ()
        works.append(Work(source, lacking, pools, asked))
    return works


def source_of(plan: Plan, places: NDArray[np.int64], canaries: NDArray[np.int64]) -> pa.Table:
    """Build the input of the stream (batch_schema.SOURCE): the objects to embed by id, then the canaries."""
    parts = []
    for chosen, canary in ((places, False), (canaries, True)):
        part = rows_of(plan.table, chosen)
        columns = {name: part[name] for name in part.schema.names} | {
            "uri": pc.binary_join_element_wise(plan.listing.prefix, part["volume_id"], ""),
            "canary": pa.repeat(canary, part.num_rows),
        }
        parts.append(pa.table([columns[name] for name in SOURCE.names], schema=SOURCE))
    return pa.concat_tables(parts)


def embed(works: Sequence[Work], stages: Stages) -> Streamed:
    """Run the streams one after the other."""
    made = []
    for work in works:
        with asking(work.asked):
            made.append(stream(work.source, work.jobs, work.pools, stages))
    return concatenate(made)


def concatenate(made: Sequence[Streamed]) -> Streamed:
    """Concatenate the output of several streams."""
    return Streamed(
        pa.concat_tables([LEDGER.empty_table(), *(part.ledger for part in made)]),
        pa.concat_tables([FILES.empty_table(), *(part.files for part in made)]),
        pa.concat_tables([CANARIES.empty_table(), *(part.canaries for part in made)]),
        "\n".join(part.statistics for part in made),
    )


def needs_models(plan: Plan) -> bool:
    """Whether a run must load models: to embed, or to judge by canaries what an unfinished run embedded."""
    return plan.count("embed") > 0 or "resumed" in plan.causes()


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
