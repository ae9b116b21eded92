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
from medret.archive import LabelJoin, Labels, Listing, list_archive, read_labels
from medret.errors import GateError, MedretError, StorageError
from medret.models import ModelSpec, Weights, model_spec, resolve_precision, resolve_weights
from medret.pipeline.cluster import PoolPlan, capacity_now, connected, device_for, plan_pools
from medret.pipeline.indices import build_indices, index_jobs
from medret.pipeline.progress import Reporter, StageCount, StageCounter
from medret.pipeline.report import write_report
from medret.pipeline.request import IndexRequest
from medret.pipeline.stages import SOURCE
from medret.pipeline.stream import ModelJob, stream
from medret.recipe import ModelRecipe, Precision, Recipe
from medret.schemas import FILES, LEDGER, QUARANTINE
from medret.snapshot import Counts, RecipeEntry, current_id, publish, read_ledger, read_manifest
from medret.snapshot.publish import write_quarantine
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
    previous = _previous(store)
    precisions = _precisions(request, device, pools, specs, weights, previous)
    jobs = [_model_job(request, s, w, p, device) for s, w, p in zip(specs, weights, precisions, strict=True)]
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
            _source(listing, labels), jobs, pools, store, request.slices, request.limits, request.aggregations,
            counter, shard_volumes=request.shard_volumes,
        )  # fmt: skip
    stages: dict[str, StageCount] = ray.get(counter.stages.remote())
    log.facts |= {"stages": {name: vars(count) for name, count in stages.items()}, "ray_data": statistics}

    ledger = _with_labels(ledger, labels.labels)
    counts = _counts(listing, ledger, previous)
    log.facts["counts"] = counts.model_dump()
    if counts.embedded == 0:
        raise GateError(
            f"refused to publish: none of the {len(listing.objects)} volumes of {request.archive} could be embedded: "
            f"{_codes(ledger)}; the previous snapshot, if any, stays live"
        )
    reporter.say(f"building indices over {_rows(files)} vectors")
    with log.phase("index"):
        built, entries, index_s = build_indices(
            store, index_jobs(files, recipes, request.index), request.index, use_gpu=device == "cuda"
        )
    log.facts["index_seconds"] = index_s
    quarantine = _quarantine(ledger)
    if quarantine.num_rows:
        files = pa.concat_tables([files, _quarantine_file(store, log.run, quarantine)])
    slices = int(pc.sum(ledger["slices"]).as_py() or 0)
    with log.phase("publish"):
        snapshot_id, manifest = publish(
            store, ledger, pa.concat_tables([files, built]), medret_version=medret.__version__, run=log.run,
            archive_uri=listing.archive_uri, recipes=[_recipe_entry(job) for job in jobs],
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


# --- before the stream -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Previous:
    """The live snapshot before this run: content hash by volume, and its recipes."""

    content: Mapping[str, str | None]
    recipes: tuple[Recipe, ...]


def _previous(store: Location) -> _Previous:
    live = current_id(store)
    if live is None:
        return _Previous({}, ())
    manifest = read_manifest(store, live)
    ledger = read_ledger(store, live, manifest, ["volume_id", "content_sha256"])
    content = dict(zip(ledger["volume_id"].to_pylist(), ledger["content_sha256"].to_pylist(), strict=True))
    return _Previous(content, tuple(entry.load() for entry in manifest.recipes))


def _precisions(
    request: IndexRequest, device: str, pools: PoolPlan, specs: Sequence[ModelSpec], weights: Sequence[Weights],
    previous: _Previous,
) -> list[Precision]:  # fmt: skip
    """The precision of each model: as asked for; else as the store began with; else what the device does best."""
    known = {(r.model.name, r.model.weights_sha256): r.model.precision for r in previous.recipes}
    found: Precision | None = None
    precisions: list[Precision] = []
    for spec, weight in zip(specs, weights, strict=True):
        kept = known.get((spec.name, weight.sha256)) if request.precision == "auto" else None
        if kept is None and found is None:
            if device == "cuda":  # the driver's machine may have no GPU: ask a machine that has one
                probe = ray.remote(num_cpus=0, num_gpus=pools.num_gpus)(resolve_precision)
                asked: Any = probe.remote(request.precision, device)
                found = ray.get(asked)
            else:
                found = resolve_precision(request.precision, device)
        precision = kept or found
        assert precision is not None
        precisions.append(precision)
    return precisions


def _model_job(request: IndexRequest, spec: ModelSpec, weights: Weights, precision: Precision, device: str) -> ModelJob:
    model = ModelRecipe(
        name=spec.name,
        weights_sha256=weights.sha256,
        side_px=spec.side_px,
        mean=spec.mean,
        std=spec.std,
        dim=spec.dim,
        precision=precision,
    )
    batch_size = request.batch_size or (128 if device == "cuda" else 8)
    return ModelJob(spec, weights, request.weights.get(spec.name), Recipe(request.slices, model), device, batch_size)


def _source(listing: Listing, labels: LabelJoin) -> pa.Table:
    """The objects as the stream's input, in the order of their ids."""
    known, objects = labels.labels, listing.objects
    columns = [
        [o.volume_id for o in objects],
        [o.uri for o in objects],
        [o.size_bytes for o in objects],
        [o.etag for o in objects],
        [o.mtime for o in objects],
        [known[o.volume_id].modality if o.volume_id in known else None for o in objects],
    ]
    return pa.table(columns, schema=SOURCE)


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


# --- after the stream ------------------------------------------------------------------------------------------


def _with_labels(ledger: pa.Table, labels: Mapping[str, Labels]) -> pa.Table:
    """The ledger with its label columns filled."""
    rows = [labels.get(volume_id, Labels()) for volume_id in ledger["volume_id"].to_pylist()]
    columns = {
        **{name: [getattr(row, name) for row in rows] for name in ("subject", "modality", "body_region", "organ")},
        "metadata": [list(row.metadata.items()) for row in rows],
    }
    for name, values in columns.items():
        ledger = ledger.set_column(
            LEDGER.get_field_index(name), LEDGER.field(name), pa.array(values, LEDGER.field(name).type)
        )
    return ledger


def _counts(listing: Listing, ledger: pa.Table, previous: _Previous) -> Counts:
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded"))
    content = zip(embedded["volume_id"].to_pylist(), embedded["content_sha256"].to_pylist(), strict=True)
    known = [(previous.content.get(volume_id), sha256) for volume_id, sha256 in content]
    return Counts(
        listed=listing.listed,
        embedded=embedded.num_rows,
        new=sum(before is None for before, _ in known),
        changed=sum(before is not None and before != now for before, now in known),
        gone=len(set(previous.content) - {o.volume_id for o in listing.objects}),
        quarantined=ledger.num_rows - embedded.num_rows,
        skipped=sum(listing.skipped.values()),
    )


def _quarantine(ledger: pa.Table) -> pa.Table:
    refused = ledger.filter(pc.equal(ledger["status"], "quarantined"))
    return refused.select(QUARANTINE.names).cast(QUARANTINE).sort_by("volume_id")


def _quarantine_file(store: Location, run: str, quarantine: pa.Table) -> pa.Table:
    from medret.pipeline.stages import file_row

    written = write_quarantine(store, run, quarantine)
    return pa.Table.from_pylist([file_row(written, "quarantine", quarantine.num_rows, None, None, None)], schema=FILES)


def _codes(ledger: pa.Table) -> str:
    counted = ledger["code"].value_counts().to_pylist()
    return ", ".join(f"{item['counts']} {item['values']}" for item in counted if item["values"])


def _rows(files: pa.Table) -> int:
    return int(pc.sum(files["rows"]).as_py() or 0)


def _recipe_entry(job: ModelJob) -> RecipeEntry:
    given = Location(job.given).uri if job.given and not job.weights.random else job.given
    return RecipeEntry(
        recipe=job.recipe.to_json(),
        weights_source=job.weights.source,
        weights_uri=given,
        random_weights=job.weights.random,
    )


def _worst_recall(entries: Sequence[Any]) -> dict[str, float]:
    """The lowest recall@10 of each index kind over the snapshot's indices."""
    worst: dict[str, float] = {}
    for entry in entries:
        for kind, value in entry.recall.items():
            worst[kind] = min(value, worst.get(kind, 1.0))
    return worst
