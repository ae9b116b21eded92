"""The Ray Data stream: which volumes go through it for which models, and its stages, which read every byte once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from medret.embeddings import Aggregation
from medret.models import ModelSpec, Weights, read_contents
from medret.pipeline.batch_schema import CANARIES, SOURCE, Gathered, PackedFacts
from medret.pipeline.cluster import asking
from medret.pipeline.embed_stage import EmbedStage
from medret.pipeline.embedding_shards import WriteStage
from medret.pipeline.plan import CAUSES, Plan, recipes_of
from medret.pipeline.pools import Capacity, PoolPlan, Wish, plan_pools, wishes
from medret.pipeline.read_stage import ReadStage
from medret.pipeline.request import IndexRequest
from medret.pipeline.stop import Stop
from medret.pipeline.store_state import query, rows_of
from medret.recipe import Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER
from medret.storage import Location
from medret.volume import Limits
from medret.volume.previews import PREVIEW_SIZE

# Volumes per block: one read task returns a block, one call of an actor embeds it. The driver spends about 30 ms on
# each block, so a large archive gets large blocks, as long as there are enough to share. Actors come and go, and equal
# runs must write equal shards: the size of a block depends on the work and the device alone. A GPU embeds 64 volumes of
# 16 slices in a quarter of a second, a core 16 volumes in ten seconds; a kill should not lose more work than that, and
# a run that is stopping should not wait for more. Small volumes of few slices share larger blocks. Powers of two, as
# batch sizes are: calls then fill their batches even if each volume has a single slice.
LEAST_VOLUMES = 8
MOST_VOLUMES = {"cpu": 16, "cuda": 64}
SMALL_VOLUMES = 256  # most of a block, if they have at most these slices and bytes together
SMALL_SLICES = {"cpu": 256, "cuda": 1024}
SMALL_BYTES = 256 * 2**20
BLOCKS = 256  # at least, of more than LEAST_VOLUMES
USUAL_SLICES = 16  # per plane, if the slice plan depends on the volume
READ_MEMORY_BYTES = 256 * 2**20  # per read task, for Ray's scheduling: a typical decoded volume and its slices
# How the scheduling loop sleeps; see Pause.
LONGEST_SLEEP_S = 1.0  # what no task tells is noticed this late: that a consumer has taken a block, that an actor died
QUIET_STEPS = 1  # before the loop sleeps: a stage whose input has ended hands out the rest in the next step
WAITING = 2  # calls queued per actor beside those that it works on, so that transfers overlap with computing

CANARY_COUNT = 3  # unchanged volumes to embed again, so that gates can compare the vectors
CANARY_MAX_BYTES = 256 * 2**20
FIRST_BY_HASH = "SELECT place FROM volumes ORDER BY sha256(volume_id) LIMIT $most"


@dataclass(frozen=True)
class ModelJob:
    """One model of the run. weights_uri: the weights that the user named. batch_size: slices per model call."""

    spec: ModelSpec
    weights: Weights
    weights_uri: str | None
    recipe: Recipe
    device: str
    batch_size: int


@dataclass(frozen=True)
class Work:
    """The input of one stream: objects (batch_schema.SOURCE), the models to embed them with, actors per model.

    asked: what the autoscaler is asked for meanwhile.
    """

    source: pa.Table
    jobs: tuple[ModelJob, ...]
    pools: PoolPlan
    asked: tuple[Wish, ...] = ()


@dataclass(frozen=True)
class Stages:
    """What all stages share. ruleset_digest: see store_state.Target. counter: handle of the StageCounter actor.

    hidden: names of labels in tags that are not stored. previews: per volume. facts: of the volumes that are streamed.
    """

    store: Location
    slices: SliceRecipe
    limits: Limits
    aggregations: tuple[Aggregation, ...]
    ruleset_digest: str
    counter: Any
    shard_volumes: int
    hidden: frozenset[str] = frozenset()
    previews: int = 0
    facts: PackedFacts = field(default_factory=PackedFacts)


@dataclass(frozen=True)
class Streamed:
    """The results of a stream.

    ledger: schemas.LEDGER, with packed facts; of the labels, only the modality that was given, and those found in tags.
    files: schemas.FILES. canaries: batch_schema.CANARIES.
    statistics: Ray Data's own, as text.
    """

    ledger: pa.Table
    files: pa.Table
    canaries: pa.Table
    statistics: str = ""


def needs_models(plan: Plan) -> bool:
    """Whether a run must load models: to embed, or to judge by canaries what an unfinished run embedded."""
    return plan.count("embed") > 0 or "resumed" in plan.causes()


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
        source = source_of(plan, chosen, _choose_canaries(plan))
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


def _choose_canaries(plan: Plan) -> NDArray[np.int64]:
    """Choose a few unchanged volumes, as rows of the plan; an archive always gives the same ones."""
    chosen = (plan.codes("cause") == CAUSES.index("unchanged")) & (
        plan.table["size_bytes"].to_numpy() <= CANARY_MAX_BYTES
    )
    places = np.flatnonzero(chosen)
    volumes = rows_of(plan.table.select(["volume_id"]), places).append_column("place", pa.array(places))
    return np.sort(query(FIRST_BY_HASH, {"volumes": volumes}, most=CANARY_COUNT)["place"].to_numpy())


def block_volumes(source: pa.Table, device: str, slices: SliceRecipe) -> int:
    """Volumes per block: what one task reads and one call embeds. source: batch_schema.SOURCE."""
    kind, _, number = slices.slices.partition(":")
    per_volume = len(slices.planes) * (int(number) if kind in ("uniform", "random") else USUAL_SLICES)
    volumes, size_bytes = source.num_rows, pc.sum(source["size_bytes"]).as_py() or 1
    small = min(SMALL_VOLUMES, SMALL_SLICES[device] // per_volume, SMALL_BYTES * volumes // size_bytes)
    size = LEAST_VOLUMES
    while 2 * size <= min(max(MOST_VOLUMES[device], small), volumes // BLOCKS):
        size *= 2
    return size


def embed(works: Sequence[Work], stages: Stages, stop: Stop) -> Streamed:
    """Run the streams one after the other; begin none when the run was told to stop."""
    made = []
    for work in works:
        if stop.asked:
            break
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


def stream(source: pa.Table, jobs: Sequence[ModelJob], pools: PoolPlan, stages: Stages) -> Streamed:
    """Read, embed, reduce and write every object of `source` (batch_schema.SOURCE)."""
    if source.num_rows == 0:
        return Streamed(LEDGER.empty_table(), FILES.empty_table(), CANARIES.empty_table())
    from ray.data import DataContext  # as slow as Ray's start, and so imported during it (connect.py)

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Blocks leave every stage in their original order, so that timing does not decide which volumes share a shard.
    context.execution_options.preserve_order = True
    # One block of large volumes on a slow store may take hours; the timeout should end only a stuck run.
    context.execution_no_progress_timeout_s = 6 * 3600
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Pause]  # type: ignore[list-item]
    with DataContext.current(context):
        dataset = _build(source, jobs, pools, stages)
        ledger, files, canaries = Gathered(LEDGER, stages.facts.packed), Gathered(FILES), Gathered(CANARIES)
        batches: Iterable[pa.Table] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        for batch in batches:
            for name, gathered in (("ledger", ledger), ("files", files), ("canaries", canaries)):
                gathered.add(batch[name])
        return Streamed(ledger.table(), files.table(), canaries.table(), dataset.stats())


class Pause:
    """Sleeps between two steps of the loop while nothing happens, for DataContext.custom_execution_callback_classes.

    A step costs the driver some milliseconds, mostly to divide the cluster's resources anew, however little has
    changed. Each waits up to a tenth of a second for further tasks, so that it serves several; this stays.
    """

    def __init__(self) -> None:
        self._quiet = 0

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data after each step, in the thread of the loop."""
        waiting = [task.get_waitable() for op in executor._topology for task in op.get_active_tasks()]  # noqa: SLF001
        if waiting:
            seconds = LONGEST_SLEEP_S if self._quiet >= QUIET_STEPS else 0
            ready, _ = ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False)
            self._quiet = 0 if ready else self._quiet + 1

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing; nor after it. Ray Data calls all four methods of its ExecutionCallback."""

    after_execution_succeeds = before_execution_starts

    def after_execution_fails(self, executor: Any, error: BaseException) -> None:
        """Nothing."""


def _build(source: pa.Table, jobs: Sequence[ModelJob], pools: PoolPlan, stages: Stages) -> ray.data.Dataset:
    from ray.data import ActorPoolStrategy

    images = tuple(dict.fromkeys(job.recipe.model.images for job in jobs))
    size = block_volumes(source, jobs[0].device, stages.slices)
    # Not from_arrow: that starts one task per block, only to count its rows.
    dataset: ray.data.Dataset = ray.data.from_blocks([source.slice(at, size) for at in range(0, source.num_rows, size)])
    preview_side = next((each for each in images if isinstance(each, int)), PREVIEW_SIZE)
    reading = ReadStage(
        stages.slices, images, stages.limits, stages.counter, stages.hidden, stages.previews, preview_side
    )  # fmt: skip
    dataset = dataset.map_batches(
        reading.run,
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=pools.read_cpus,
        # Actors request no memory. This difference keeps Ray from fusing the read stage into the first pool, where
        # reading would wait for the model.
        memory=READ_MEMORY_BYTES,
    )
    for place, job in enumerate(jobs):
        last_user = all(later.recipe.model.images != job.recipe.model.images for later in jobs[place + 1 :])
        dataset = dataset.map_batches(
            EmbedStage,
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(
                min_size=pools.least[place],
                max_size=pools.most[place],
                initial_size=pools.sizes[place],
                max_tasks_in_flight_per_actor=pools.at_once[place] + WAITING,
                max_concurrent_calls_per_actor=pools.at_once[place],
                enable_true_multi_threading=pools.at_once[place] > 1,
            ),
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
        num_cpus=pools.write_cpus,
    )


def _shared(weights: Weights) -> dict[str, ray.ObjectRef[bytes]]:
    """Put each weight file into Ray's object store, for the nodes that do not have it."""
    return {role: ray.put(data) for role, data in read_contents(weights).items()}
