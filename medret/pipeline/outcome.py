"""What a run says: its outcome, its failure, and the lines on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray

from medret.archive import Listing
from medret.errors import MedretError
from medret.pipeline.gates import Losses
from medret.pipeline.plan import Plan
from medret.pipeline.progress import Reporter
from medret.pipeline.request import IndexRequest
from medret.snapshot import Counts, RecipeEntry
from medret.storage import redacted


@dataclass(frozen=True)
class IndexOutcome:
    """What a run did.

    snapshot: the live one. published: whether this run made it. touched: volumes that were written to and are as they
    were. resumed: volumes that an unfinished run had embedded. returned: volumes whose vectors an older snapshot had.
    lost: of the volumes that were live. stale: schemas.QUARANTINE of volumes that cannot be read and keep their
    vectors. labels: how they matched, in counts. slices: embedded by this run, by every model. quarantine:
    schemas.QUARANTINE. seconds: of the whole run; streaming_s: of reading to writing. report: path below the store,
    None where nothing was to be done.
    """

    snapshot: str
    published: bool
    counts: Counts
    touched: int
    resumed: int
    returned: int
    lost: Losses
    stale: pa.Table
    skipped: Mapping[str, int]
    labels: Mapping[str, Any]
    slices: int
    seconds: float
    streaming_s: float
    quarantine: pa.Table
    recipes: tuple[RecipeEntry, ...]
    recall: Mapping[str, float]
    report: str | None

    @property
    def slices_per_second(self) -> float:
        """Slices embedded (by every model) a second of streaming."""
        return self.slices / self.streaming_s if self.streaming_s > 0 else 0.0


def failure_of(error: BaseException) -> MedretError:
    """What went wrong in a worker, without the way it took through Ray; the whole trace stays in Ray's logs."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MedretError) and not isinstance(link, ray.exceptions.RayError):
            return link
        link = getattr(link, "cause", None) or link.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return MedretError(f"a worker failed and its work could not be repeated: {lines[-1].strip() if lines else error!r}")


def request_facts(request: IndexRequest) -> dict[str, Any]:
    """What was asked, for the run report."""
    return {
        "archive": request.archive,
        "store": request.store,
        "labels": redacted(request.labels) if request.labels else None,
        "pattern": request.pattern,
        "exclude": list(request.exclude),
        "include_masks": request.include_masks,
        "slices": vars(request.slices),
        "aggregations": [aggregation.name for aggregation in request.aggregations],
        "index": request.index.to_json(),
        "precision": request.precision,
        "batch_size": request.batch_size,
        "shard_volumes": request.shard_volumes,
        "gates": asdict(request.gates),
    }


def say_listing(reporter: Reporter, listing: Listing) -> None:
    """What was found in the archive."""
    skipped = "".join(f", {count} skipped ({rule})" for rule, count in sorted(listing.skipped.items()))
    size = sum(o.size_bytes for o in listing.objects) / 2**20
    reporter.say(f"{listing.archive_uri}: {len(listing.objects)} volumes, {size:.1f} MiB{skipped}")
    for rule, paths in listing.surprises.items():
        more = ", ..." if listing.skipped[rule] > len(paths) else ""
        reporter.say(f"skipped ({rule}): {', '.join(paths)}{more}")


def say_plan(reporter: Reporter, plan: Plan) -> None:
    """What becomes of it."""
    causes = [f"{count} {cause}" for cause, count in sorted(plan.causes().items())]
    reporter.say(", ".join([*causes, f"{len(plan.gone)} gone"]))


def worst_recall(entries: Sequence[Any]) -> dict[str, float]:
    """The lowest recall@10 of each index kind over the snapshot's indices."""
    worst: dict[str, float] = {}
    for entry in entries:
        for kind, value in entry.recall.items():
            worst[kind] = min(value, worst.get(kind, 1.0))
    return worst
