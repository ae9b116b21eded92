"""One index run, from the archive's listing to the published snapshot."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

import medret
from medret.archive import LabelJoin, Listing, list_archive, read_labels
from medret.errors import GateError, MedretError, StorageError
from medret.models import ModelSpec, Weights, model_spec, resolve_weights
from medret.pipeline import ledger as ledgers
from medret.pipeline.centres import centre_files
from medret.pipeline.cluster import capacity_now, connected, device_for, plan_pools
from medret.pipeline.indices import build_indices, index_jobs
from medret.pipeline.model_jobs import model_jobs, previous_snapshot, recipe_entry
from medret.pipeline.progress import Reporter, StageCount, StageCounter
from medret.pipeline.report import write_report
from medret.pipeline.request import IndexRequest
from medret.pipeline.stream import stream
from medret.snapshot import Counts, RecipeEntry, publish
from medret.storage import Location


@dataclass(frozen=True)
class IndexOutcome:
    """What a run did. quarantine: schemas.QUARANTINE. seconds: of the whole run; streaming_s: of reading to writing."""

    snapshot: str
    counts: Counts
    skipped: Mapping[str, int]
    slices: int
    seconds: float
    streaming_s: float
    quarantine: pa.Table
    recipes: tuple[RecipeEntry, ...]
    recall: Mapping[str, float]
    report: str

    @property
    def slices_per_second(self) -> float:
        """Slices embedded (by every model) a second of streaming."""
        return self.slices / self.streaming_s if self.streaming_s > 0 else 0.0


@dataclass
class _Log:
    """What the run report will say; filled while the run goes on."""

    run: str
    started: datetime
    phases_s: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.phases_s[name] = round(time.monotonic() - start, 3)


def run_index(request: IndexRequest, reporter: Reporter | None = None) -> IndexOutcome:
    """Bring a store up to date with an archive and publish a snapshot; raises MedretError.

    A run report is written whatever the outcome, unless the request was wrong before any work began.
    """
    reporter = reporter or Reporter(quiet=True)
    started = datetime.now(UTC)
    log = _Log(run=f"{started:%Y%m%dT%H%M%SZ}", started=started)
    store = Location(request.store)
    clock = time.monotonic()
    specs = [model_spec(name, request.weights.get(name)) for name in request.models]
    with log.phase("list"):
        listing = list_archive(request.archive, request.pattern)
        labels = read_labels(request.labels, listing)
    with log.phase("weights"):
        weights = [resolve_weights(spec, request.weights.get(spec.name)) for spec in specs]
    _say_listing(reporter, listing, labels, request.labels)
    with connected():
        try:
            outcome = _run(request, reporter, log, store, listing, labels, specs, weights, clock)
        except (MedretError, ray.exceptions.RayError) as error:
            failure = _failure(error)
            log.facts["outcome"] = "refused" if isinstance(failure, GateError) else "failed"
            log.facts["error"] = str(failure)
            with suppress(StorageError):  # where nothing can be written, the failure itself is what matters
                write_report(store, log.run, log.started, log.phases_s, log.facts)
            raise failure from error
    return outcome


def _run(
    request: IndexRequest, reporter: Reporter, log: _Log, store: Location, listing: Listing, labels: LabelJoin,
    specs: Sequence[ModelSpec], weights: Sequence[Weights], clock: float,
) -> IndexOutcome:  # fmt: skip
    capacity = capacity_now()
    device = device_for(request.device, capacity)
    pools = plan_pools(capacity, len(specs), device, actors=request.actors, gpus_per_actor=request.gpus_per_actor)
    previous = previous_snapshot(store)
    jobs = model_jobs(request, device, pools, specs, weights, previous)
    for job in jobs:
        recipe = job.recipe
        reporter.say(
            f"model {recipe.model.name}: {job.weights.source}; {device} {recipe.model.precision}, batches of "
            f"{job.batch_size}; {pools.size} actor(s); recipe {recipe.digest}"
        )
    log.facts |= {"request": _request_facts(request), "cluster": vars(capacity), "pools": vars(pools), "device": device}
    log.facts["models"] = {job.recipe.model.name: job.weights.source for job in jobs}

    counter = StageCounter.remote()  # type: ignore[attr-defined]  # added by ray.remote
    recipes = tuple(job.recipe for job in jobs)
    last = f"embed {recipes[-1].model.name}"
    with log.phase("stream"), reporter.watching(counter, len(listing.objects), last):
        ledger, files, statistics = stream(
            ledgers.source(listing, labels), jobs, pools, store, request.slices, request.limits, request.aggregations,
            counter, shard_volumes=request.shard_volumes,
        )  # fmt: skip
    stages: dict[str, StageCount] = ray.get(counter.stages.remote())
    log.facts |= {"stages": {name: vars(count) for name, count in stages.items()}, "ray_data": statistics}

    ledger = ledgers.with_labels(ledger, labels.labels)
    counts = ledgers.counts(listing, ledger, previous)
    log.facts["counts"] = counts.model_dump()
    if counts.embedded == 0:
        raise GateError(
            f"refused to publish: none of the {len(listing.objects)} volumes of {request.archive} could be embedded: "
            f"{ledgers.codes(ledger)}; the previous snapshot, if any, stays live"
        )
    reporter.say(f"building indices over {_rows(files)} vectors")
    with log.phase("index"):
        centres = centre_files(store, files, previous.files, recipes, request.index)
        jobs_of_index = index_jobs(files, centres, recipes, request.index)
        built, entries, index_s = build_indices(store, jobs_of_index, request.index, use_gpu=device == "cuda")
    log.facts["index_seconds"] = index_s
    quarantine = ledgers.quarantine(ledger)
    if quarantine.num_rows:
        files = pa.concat_tables([files, ledgers.quarantine_file(store, log.run, quarantine)])
    slices = int(pc.sum(ledger["slices"]).as_py() or 0)
    with log.phase("publish"):
        snapshot_id, manifest = publish(
            store, ledger, pa.concat_tables([files, centres, built]), medret_version=medret.__version__, run=log.run,
            archive_uri=listing.archive_uri, recipes=[recipe_entry(job) for job in jobs],
            aggregations=[aggregation.name for aggregation in request.aggregations],
            index_settings=request.index.to_json(), indices=entries, counts=counts, skipped=dict(listing.skipped),
            slices=slices,
        )  # fmt: skip
    log.facts |= {"outcome": "published", "snapshot": snapshot_id}
    report = write_report(store, log.run, log.started, log.phases_s, log.facts)
    return IndexOutcome(
        snapshot=snapshot_id,
        counts=counts,
        skipped=listing.skipped,
        slices=slices * len(jobs),
        seconds=time.monotonic() - clock,
        streaming_s=log.phases_s["stream"],
        quarantine=quarantine,
        recipes=tuple(manifest.recipes),
        recall=_worst_recall(entries),
        report=report,
    )


def _failure(error: BaseException) -> MedretError:
    """What went wrong in a worker, without the way it took through Ray; the whole trace stays in Ray's logs."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MedretError) and not isinstance(link, ray.exceptions.RayError):
            return link
        link = getattr(link, "cause", None) or link.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return MedretError(f"a worker failed and its work could not be repeated: {lines[-1].strip() if lines else error!r}")


def _request_facts(request: IndexRequest) -> dict[str, Any]:
    return {
        "archive": request.archive,
        "store": request.store,
        "labels": request.labels,
        "pattern": request.pattern,
        "slices": vars(request.slices),
        "aggregations": [aggregation.name for aggregation in request.aggregations],
        "index": request.index.to_json(),
        "precision": request.precision,
        "batch_size": request.batch_size,
        "shard_volumes": request.shard_volumes,
    }


def _say_listing(reporter: Reporter, listing: Listing, labels: LabelJoin, given: str | None) -> None:
    skipped = "".join(f", {count} skipped ({rule})" for rule, count in sorted(listing.skipped.items()))
    size = sum(o.size_bytes for o in listing.objects) / 2**20
    reporter.say(f"{listing.archive_uri}: {len(listing.objects)} volumes, {size:.1f} MiB{skipped}")
    if labels.labels or given:
        reporter.say(
            f"labels for {len(labels.labels)} volumes; {labels.unlabelled_volumes} volumes have none; "
            f"{labels.unmatched_rows} rows match no volume"
        )


def _rows(files: pa.Table) -> int:
    return int(pc.sum(files["rows"]).as_py() or 0)


def _worst_recall(entries: Sequence[Any]) -> dict[str, float]:
    """The lowest recall@10 of each index kind over the snapshot's indices."""
    worst: dict[str, float] = {}
    for entry in entries:
        for kind, value in entry.recall.items():
            worst[kind] = min(value, worst.get(kind, 1.0))
    return worst
