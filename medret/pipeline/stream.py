"""The Ray Data stream: one pass over the bytes for all models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from medret.embeddings import Aggregation
from medret.models import ModelSpec, Weights, read_contents
from medret.pipeline.batch_schema import CANARIES, from_ipc
from medret.pipeline.cluster import PoolPlan
from medret.pipeline.embed_stage import EmbedStage
from medret.pipeline.read_stage import ReadStage
from medret.pipeline.write_stage import WriteStage
from medret.recipe import Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER
from medret.storage import Location
from medret.volume import Limits

# Volumes a block: what a read task gives and an actor's call embeds. The driver spends some 30 ms on each block, so a
# large archive has large ones, as long as every actor gets many. A GPU embeds 64 volumes of 16 slices in a quarter of a
# second, a core 16 in ten seconds: what a kill loses, and a run that is to stop waits for, should not be more. Powers
# of two, as batches are: where a volume has one slice, a call fills its batches too.
LEAST_VOLUMES = 8
MOST_VOLUMES = {"cpu": 16, "cuda": 64}
CALLS_AN_ACTOR = 16
READ_MEMORY_BYTES = 256 * 2**20  # of a read task, as Ray schedules it: a common volume decoded, and its slices
IN_FLIGHT = 3  # calls queued at an actor: transfers overlap with computing


@dataclass(frozen=True)
class ModelJob:
    """One model of the run. weights_uri: what the user passed as its weights. batch_size: slices per call."""

    spec: ModelSpec
    weights: Weights
    weights_uri: str | None
    recipe: Recipe
    device: str
    batch_size: int


@dataclass(frozen=True)
class Stages:
    """What the stages work with. ruleset_digest: see plan.Target. counter: a StageCounter."""

    store: Location
    slices: SliceRecipe
    limits: Limits
    aggregations: tuple[Aggregation, ...]
    ruleset_digest: str
    counter: Any
    shard_volumes: int


@dataclass(frozen=True)
class Streamed:
    """What a stream gave.

    ledger: schemas.LEDGER, of labels only the modality. files: schemas.FILES. canaries: rows.CANARIES. statistics: Ray
    Data's, in words.
    """

    ledger: pa.Table
    files: pa.Table
    canaries: pa.Table
    statistics: str = ""


def stream(source: pa.Table, jobs: Sequence[ModelJob], pools: PoolPlan, stages: Stages) -> Streamed:
    """Read, embed, reduce and write every object of `source` (rows.SOURCE)."""
    if source.num_rows == 0:
        return Streamed(LEDGER.empty_table(), FILES.empty_table(), CANARIES.empty_table())
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Blocks leave a stage in the order in which they came: which volumes share a shard does not depend on timing.
    context.execution_options.preserve_order = True
    # A large archive on a slow store may take long over one block; only a stuck run should be ended.
    context.execution_no_progress_timeout_s = 6 * 3600
    with DataContext.current(context):
        dataset = _build(source, jobs, pools, stages)
        cells: dict[str, list[bytes]] = {"ledger": [], "files": [], "canaries": []}
        batches: Iterable[pa.Table] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        for batch in batches:
            for name, found in cells.items():
                found += batch[name].to_pylist()
        return Streamed(
            from_ipc(cells["ledger"], LEDGER),
            from_ipc(cells["files"], FILES),
            from_ipc(cells["canaries"], CANARIES),
            dataset.stats(),
        )


def block_volumes(volumes: int, actors: int, device: str) -> int:
    """How many volumes are read by one task and embedded by one call."""
    size = LEAST_VOLUMES
    while 2 * size <= min(MOST_VOLUMES[device], volumes // (CALLS_AN_ACTOR * actors)):
        size *= 2
    return size


def _build(source: pa.Table, jobs: Sequence[ModelJob], pools: PoolPlan, stages: Stages) -> ray.data.Dataset:
    sides = tuple(sorted({job.recipe.model.image_size for job in jobs}))
    size = block_volumes(source.num_rows, max(pools.sizes), jobs[0].device)
    # Not from_arrow: it starts a task for each block, only to count its rows.
    dataset: ray.data.Dataset = ray.data.from_blocks([source.slice(at, size) for at in range(0, source.num_rows, size)])
    dataset = dataset.map_batches(
        ReadStage(stages.slices, sides, stages.limits, stages.counter).run,
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=pools.read_cpus,
        # A share of memory that actors do not ask for also keeps Ray from fusing reading into the first pool, where it
        # would wait for the model.
        memory=READ_MEMORY_BYTES,
    )
    for place, job in enumerate(jobs):
        side = job.recipe.model.image_size
        last_user = all(later.recipe.model.image_size != side for later in jobs[place + 1 :])
        dataset = dataset.map_batches(
            EmbedStage,
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(size=pools.sizes[place], max_tasks_in_flight_per_actor=IN_FLIGHT),
            num_cpus=pools.num_cpus,
            num_gpus=pools.num_gpus or None,
            fn_constructor_args=(job.spec, job.weights, _shared(job.weights), job.recipe),
            fn_constructor_kwargs={
                "device": job.device,
                "batch_size": job.batch_size,
                "threads": pools.threads,
                "drop_pixels": last_user,
                "counter": stages.counter,
            },
        )
    return dataset.map_batches(
        WriteStage(
            stages.store, tuple(job.recipe for job in jobs), stages.aggregations, stages.ruleset_digest, stages.counter
        ).run,
        batch_format="pyarrow",
        batch_size=stages.shard_volumes,
        num_cpus=0,  # light work that must never wait behind reading: what is written survives a crash
    )


def _shared(weights: Weights) -> dict[str, ray.ObjectRef[bytes]]:
    """Each weight file in the object store, for nodes that do not have it."""
    return {role: ray.put(data) for role, data in read_contents(weights).items()}
