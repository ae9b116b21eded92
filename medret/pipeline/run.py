"""One index run, from the archive's listing to the published snapshot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import ray
from msgspec.structs import asdict

from medret._version import __version__
from medret.errors import BusyError, GateError, MedretError, StorageError
from medret.pipeline import judge
from medret.pipeline import new_ledger as ledgers
from medret.pipeline.batch_schema import CANARIES, PackedFacts
from medret.pipeline.cluster import find_device, watching_nodes
from medret.pipeline.connect import connected
from medret.pipeline.content_hashes import compare_contents, embedded_instead, orphans
from medret.pipeline.counter import NO_COUNTS, Counting
from medret.pipeline.gates import OF_VECTORS, check_labels, enforce, label_facts
from medret.pipeline.indices import make_indices
from medret.pipeline.layout import copy_vectors, lay_out
from medret.pipeline.model_jobs import model_jobs, recipe_changes, recipe_entry, refuse_replacing, with_models
from medret.pipeline.plan import Plan
from medret.pipeline.pools import Capacity
from medret.pipeline.prepare import (
    NOTHING,
    Inputs,
    State,
    changes_every_row,
    is_up_to_date,
    known_recipes,
    plan_run,
    read_inputs,
    read_state,
)
from medret.pipeline.request import IndexRequest, request_facts
from medret.pipeline.result import (
    IndexOutcome,
    Log,
    Reporter,
    begin,
    failure_of,
    say_labels,
    say_listing,
    say_plan,
)
from medret.pipeline.stop import Stop
from medret.pipeline.store_state import Target, live_manifest, rows_of, stored_rows, unfinished_elsewhere
from medret.pipeline.stream import ModelJob, Stages, Streamed, Work, concatenate, divide_work, embed, needs_models
from medret.recipe import Recipe
from medret.schemas import FILES, LEDGER, one_heap
from medret.snapshot import Lease, clear_journal, leased, publish
from medret.snapshot.files import StoredFile, files_table
from medret.snapshot.lease import refuse_if_held
from medret.snapshot.names import say_strangers
from medret.snapshot.publish import worst_recall, write_quarantine
from medret.snapshot.removal import finish
from medret.storage import Location
from medret.storage.filesystems import retries

logger = logging.getLogger(__name__)


@dataclass
class _Run:
    """What the steps of a run share."""

    request: IndexRequest
    store: Location
    inputs: Inputs
    state: State
    reporter: Reporter
    log: Log
    lease: Lease
    stop: Stop
    facts: PackedFacts = field(default_factory=PackedFacts)


def run_index(request: IndexRequest, reporter: Reporter | None = None, stop: Stop | None = None) -> IndexOutcome:
    """Bring a store up to date with an archive, and publish a snapshot if anything changed; raises MedretError.

    Writes a run report for every outcome once the work has begun. stop: receives signals to the run; None: a new one.
    """
    stop = stop or Stop()
    with stop.listening(), one_heap(), ExitStack() as stack:
        return _run_index(request, reporter or Reporter(quiet=True), stop, stack)


def _run_index(request: IndexRequest, reporter: Reporter, stop: Stop, stack: ExitStack) -> IndexOutcome:
    """stack: holds the lease until the run ends."""
    stop.check()
    log, store = begin(), request.open_store()
    reporter.fields = {"run": log.run}
    logger.info("run %s: index %s", log.run, store.uri, extra=reporter.fields)
    refuse_if_held(store)
    requested, request = request, with_models(request, live_manifest(store))
    inputs = read_inputs(request, log, reporter.warn)
    say_listing(reporter, inputs.listing)
    say_labels(reporter, inputs.labels)
    with stop.deferred():
        lease = stack.enter_context(leased(store, f"run {log.run}", request.lease_s))
    stop.check()
    finish(store, lease, reporter.say)
    state = read_state(request, store, inputs)
    # The weights were read before the lease was held, to hold it briefly: another run may have published since.
    if with_models(requested, state.base.manifest) != request:
        raise BusyError(f"{store.uri}: another run has published other models in the meantime; run again")
    refuse_replacing(request, state.base.manifest)
    if state.base.id is None:
        say_strangers(store, reporter.say)
    check_labels(state.base.ledger, inputs.listing, inputs.labels, request.gates)
    run = _Run(request, store, inputs, state, reporter, log, lease, stop)
    recipes = known_recipes(request, inputs, state)
    planned = None
    if recipes is not None:
        with log.phase("plan"):
            planned = plan_run(request, store, inputs, state, recipes)
        plan, target, run.state = planned
        if is_up_to_date(request, inputs, state, recipes, plan):
            clear_journal(store, _useful_to_others(run, target))
            return _nothing_to_do(run, plan)
    with log.entering("ray", connected()), watching_nodes(reporter.warn) as log.facts["lost_nodes"]:
        try:
            with stop.explained():
                return _embed_and_publish(run, planned)
        except (MedretError, ray.exceptions.RayError) as error:
            failure = failure_of(error)
            log.failed(store, failure)
            raise failure from error


def _nothing_to_do(run: _Run, plan: Plan) -> IndexOutcome:
    base, known = run.state.base, run.state.known
    assert base.id is not None
    assert base.manifest is not None
    run.reporter.say(f"snapshot {base.id} is up to date; nothing to do")
    ledger = ledgers.unchanged(known, stored_rows(run.store, base, known))
    unusable = ledger.unusable()
    return IndexOutcome(
        snapshot=base.id,
        published=False,
        counts=judge.counts(run.inputs.listing, plan, ledger),
        touched=0,
        resumed=0,
        returned=0,
        lost=judge.lost(run.log, plan),
        stale=judge.stale(unusable),
        skipped=run.inputs.listing.skipped,
        labels=label_facts(run.inputs.labels, ledger.tagged, ledger.ct_without_hu),
        slices=0,
        seconds=run.log.passed_s,
        streaming_s=0.0,
        quarantine=judge.quarantine(unusable),
        recipes=tuple(base.manifest.recipes),
        recall=worst_recall(base.manifest.indices),
        report=None,
    )


def _embed_and_publish(run: _Run, planned: tuple[Plan, Target, State] | None) -> IndexOutcome:
    """planned: None if a device must first decide a precision."""
    request, inputs, store, log = run.request, run.inputs, run.store, run.log
    jobs, capacity, device = _make_jobs(run)
    recipes = [job.recipe for job in jobs]
    with log.phase("plan"):
        plan, target, run.state = planned or plan_run(request, store, inputs, run.state, recipes)
    state = run.state
    _say_what_differs(run, recipes)
    with log.phase("check"):
        judge.refuse_losing(request, inputs, state, log, plan)
        plan = compare_contents(plan, run.reporter.say)
    log.facts["plan"] = plan.causes() | {"gone": len(plan.gone)}
    say_plan(run.reporter, plan)
    judge.refuse_losing(request, inputs, state, log, plan)

    plan, made = _stream(run, plan, target, jobs, capacity)
    run.stop.check()

    with log.phase("arrange"):
        pool = pa.concat_tables([state.files, made.files])
        copied, added, refused = copy_vectors(
            store, plan, made.ledger, pool, recipes, request.aggregations, request.shard_volumes
        )
        rows = stored_rows(store, state.base, state.known)
        whole = changes_every_row(inputs, state, target)
        ledger = ledgers.assemble(
            plan, made.ledger, copied, inputs.labels.labels, rows, run.facts, whole=whole
        ).refused(refused, target.ruleset_digest)
        layout = lay_out(
            store, ledger, pa.concat_tables([pool, added]), recipes, request.aggregations, request.shard_volumes,
            target.ruleset_digest,
        )  # fmt: skip
        ledger = layout.ledger
        unusable = ledger.unusable()
        quarantine, stale = judge.quarantine(unusable), judge.stale(unusable)
        for row in stale.to_pylist():
            fields = {**run.reporter.fields, "volume_id": row["volume_id"], "code": row["code"]}
            logger.warning("cannot be read now, keeps its stored vectors: %s", row["volume_id"], extra=fields)
        counts = judge.counts(inputs.listing, plan, ledger)
        labels = label_facts(inputs.labels, ledger.tagged, ledger.ct_without_hu)
        log.facts |= {"counts": asdict(counts), "labels": labels}
        if counts.embedded + counts.unchanged == 0:
            raise GateError(
                f"refused to publish: none of the {plan.table.num_rows} volumes of {request.archive} could be "
                f"embedded{judge.hints(request, inputs, state, quarantine)}; the previous snapshot, if any, stays live"
            )
    run.reporter.say(f"building indices over {layout.vectors} vectors")
    with log.phase("index"):
        names = [aggregation.name for aggregation in request.aggregations]
        indices = make_indices(
            store, recipes, names, layout.files, layout.live, state.base, request.index, use_gpu=device == "cuda"
        )
    log.facts |= {"index_seconds": indices.seconds, "index_shards_built": indices.built}
    with log.phase("gates"):
        judged = judge.all_gates(store, request, state, log, plan, counts, made, pool, ledger, quarantine, indices)
        if any(gate.name in OF_VECTORS and not gate.passed for gate in judged):
            clear_journal(store, _useful_to_others(run, target))  # so that the next run embeds these volumes again
        passed = enforce(judged, judge.hints(request, inputs, state, quarantine))
    files = indices.files
    if quarantine.num_rows:
        written = StoredFile.of(write_quarantine(store, log.run, quarantine), "quarantine", quarantine.num_rows)
        files = pa.concat_tables([files, files_table([written])])
    run.stop.check()
    with run.stop.deferred():  # from here on, a run that is told to stop has published
        with log.phase("publish"):
            run.lease.check()
            snapshot_id, manifest = publish(
                store, ledger.changed, ledger.gone.to_pylist(), files, indices.tombstones,
                parent=state.base.id, medret_version=__version__, run=log.run, counts=counts,
                archive_uri=inputs.listing.archive_uri, pattern=request.pattern, exclude=list(request.exclude),
                include_masks=request.include_masks, recipes=[recipe_entry(job) for job in jobs], aggregations=names,
                index_settings=request.index.to_json(), indices=indices.entries, gates=passed,
                skipped=dict(inputs.listing.skipped), facts=ledger.facts.unpacked,
                slices=int(pc.sum(ledger.select("slices")["slices"]).as_py() or 0),
            )  # fmt: skip
            with suppress(StorageError):  # the snapshot now holds its content; the next run clears it
                clear_journal(store, _useful_to_others(run, target))
        logger.info("published snapshot %s", snapshot_id, extra={**run.reporter.fields, "snapshot": snapshot_id})
        causes, waits_s = plan.causes(), log.waits()  # the report says them too
        log.facts |= {"outcome": "published", "snapshot": snapshot_id, "gates": [asdict(gate) for gate in passed]}
        report = log.written(store, run.reporter.warn)
    return IndexOutcome(
        snapshot=snapshot_id,
        published=True,
        counts=counts,
        touched=causes.get("touched", 0),
        resumed=causes.get("resumed", 0),
        returned=causes.get("returned", 0),
        lost=judge.lost(log, plan, quarantine),
        stale=stale,
        skipped=inputs.listing.skipped,
        labels=log.facts["labels"],
        slices=judge.slices_made(made.ledger),
        seconds=run.log.passed_s,
        streaming_s=log.phases_s["stream"],
        quarantine=quarantine,
        recipes=tuple(manifest.recipes),
        recall=worst_recall(indices.entries),
        waits_s=waits_s,
        report=report,
    )


def _make_jobs(run: _Run) -> tuple[list[ModelJob], Capacity, str]:
    """Find the device and the capacity of the cluster, and make one job per model."""
    request, inputs = run.request, run.inputs
    device, capacity = find_device(request.device, request.expect, request.wait_minutes, run.reporter.say)
    jobs = model_jobs(request, device, inputs.specs, inputs.weights, run.state.precisions)
    for job in jobs:
        recipe = job.recipe
        run.reporter.say(
            f"model {recipe.model.name}: {job.weights.source}; {device} {recipe.model.precision}, batches of "
            f"{job.batch_size}; recipe {recipe.digest}"
        )
    facts = {"request": request_facts(request), "cluster": vars(capacity), "device": device}
    models = {job.recipe.model.name: job for job in jobs}
    run.log.facts |= facts | {
        "models": {name: job.weights.source for name, job in models.items()},
        "precisions": {name: job.recipe.model.precision for name, job in models.items()},
        "batch_sizes": {name: job.batch_size for name, job in models.items()},
    }
    return jobs, capacity, device


def _stream(
    run: _Run, plan: Plan, target: Target, jobs: Sequence[ModelJob], capacity: Capacity
) -> tuple[Plan, Streamed]:
    """Run the stages, unless no model is needed; returns the plan and what they made.

    The plan changes if copies turn out to have other content than their leader: they are then embedded themselves.
    """
    request, log = run.request, run.log
    made, counted = Streamed(LEDGER.empty_table(), FILES.empty_table(), CANARIES.empty_table()), NO_COUNTS
    with log.phase("stream"):
        if needs_models(plan):
            counts = Counting(log.started.timestamp())
            stages = Stages(
                run.store, request.slices, request.volume_limits, request.aggregations,
                target.ruleset_digest, counts.handle, request.shard_volumes, target.hidden, request.previews,
                run.facts,
            )  # fmt: skip
            works = _divide_work(run, plan, jobs, capacity)
            watched = max(works, key=lambda work: work.source.num_rows).jobs[-1]
            volumes = sum(work.source.num_rows for work in works if watched in work.jobs)
            last = f"embed {watched.recipe.model.name}"
            with run.stop.draining(counts), run.reporter.watching(counts, volumes, last):
                made = embed(works, stages, run.stop)
                if orphaned := orphans(plan, judge.contents(made.ledger, plan.table["leader"])):
                    plan = embedded_instead(plan, orphaned)
                    alone = replace(plan, table=rows_of(plan.table, plan.places(orphaned)))
                    made = concatenate([made, embed(_divide_work(run, alone, jobs, capacity), stages, run.stop)])
            counted, log.facts["timeline"], log.facts["nodes"] = counts.stages(), counts.timeline(), counts.nodes()
    log.facts |= {"stages": {name: vars(count) for name, count in counted.items()}, "ray_data": made.statistics}
    log.facts["storage_retries"] = retries() + sum(count.retries for count in counted.values())
    return plan, made


def _divide_work(run: _Run, plan: Plan, jobs: Sequence[ModelJob], capacity: Capacity) -> list[Work]:
    """Divide the volumes to embed into streams, and report them."""
    works = divide_work(plan, jobs, capacity, run.request)
    for work in works:
        ranges = zip(work.pools.least, work.pools.most, strict=True)
        sizes = [f"{least}" if least == most else f"{least} to {most}" for least, most in ranges]
        actors = [f"{job.recipe.model.name} {size}" for job, size in zip(work.jobs, sizes, strict=True)]
        run.reporter.say(f"{work.source.num_rows} volumes to read and embed; actors: {', '.join(actors)}")
    run.log.facts.setdefault("pools", []).extend(vars(work.pools) for work in works)
    return works


def _say_what_differs(run: _Run, recipes: Sequence[Recipe]) -> None:
    """Report options that make every volume be embedded again, and older snapshots that cannot be read."""
    for change in recipe_changes(recipes, run.state.base.manifest):
        run.reporter.say(f"every volume is embedded again: {change}")
    for problem in (run.state.older or NOTHING).unread:
        run.reporter.say(f"ignoring an older snapshot that cannot be read: {problem}")


def _useful_to_others(run: _Run, target: Target) -> frozenset[str]:
    """Journal entries that this run does not use, but a run with other options may."""
    objects = run.inputs.listing.objects
    return unfinished_elsewhere(run.state.journal, objects, target.recipes, target.ruleset_digest)
