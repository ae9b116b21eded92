"""What a run reports: its outcome, its failure, and the lines on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray

from medret import errors
from medret.archive import Listing
from medret.errors import MedretError, VolumeError
from medret.pipeline.gates import Losses
from medret.pipeline.plan import Plan
from medret.pipeline.progress import Reporter
from medret.pipeline.request import IndexRequest
from medret.snapshot import Counts, RecipeEntry
from medret.storage import redacted

RAYS_ADVICE = re.compile(r"^(?:Failed to .* after \d+/\d+ attempts|To change retry attempts)", re.MULTILINE)
MEDRETS = re.compile(r"^medret\.errors\.(?P<kind>\w+): (?P<text>.+)$", re.MULTILINE)
RAISED = re.compile(r"(?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception)\b")


@dataclass(frozen=True)
class IndexOutcome:
    """What a run did.

    snapshot: id of the live snapshot. published: whether this run published it. touched: volumes with a new mtime or
    etag and the same content. resumed: volumes that an unfinished run had embedded. returned: volumes whose vectors
    came from an older snapshot. lost: losses among the volumes that were live. stale: volumes that cannot be read now
    and keep their vectors (schemas.QUARANTINE). skipped: objects skipped per rule. labels: how labels matched, in
    counts. slices: slices embedded by this run, summed over models. quarantine: schemas.QUARANTINE. seconds: of the
    whole run. streaming_s: seconds from reading to writing. recall: lowest recall@10 per index kind. report: path below
    the store; None if there was nothing to do.
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
        """Slices embedded per second of streaming, summed over models."""
        return self.slices / self.streaming_s if self.streaming_s > 0 else 0.0


def failure_of(error: BaseException) -> MedretError:
    """The error that a worker raised, without its path through Ray. Ray's logs keep the whole trace."""
    link: BaseException | None = error
    root = None
    while link is not None:
        if isinstance(link, MedretError) and not isinstance(link, ray.exceptions.RayError):
            return link
        if not isinstance(link, ray.exceptions.RayError):
            root = link
        link = getattr(link, "cause", None) or link.__cause__
    # Of a chain of errors, Ray keeps only the root. medret's own message, with the path, is in the text of the trace.
    if said := list(MEDRETS.finditer(str(error))):
        kind = getattr(errors, said[-1]["kind"], MedretError)
        return (kind if kind is not VolumeError else MedretError)(said[-1]["text"])
    cause = f"{type(root).__name__}: {root}" if root else _raised_last(str(error)) or repr(error)
    return MedretError(f"a worker failed and its work could not be repeated: {_one_line(cause)}")


def _raised_last(text: str) -> str | None:
    """The first line that names an exception: the one that caused the others."""
    return next((line for line in text.splitlines() if RAISED.match(line)), None)


def _one_line(text: str) -> str:
    """The text on one line, without Ray's advice on how to set retries."""
    text = RAYS_ADVICE.split(text)[0]
    return " ".join(line.strip() for line in text.splitlines() if line.strip()).removesuffix(": ")


def request_facts(request: IndexRequest) -> dict[str, Any]:
    """The request, for the run report."""
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
    """Report what the listing found."""
    skipped = "".join(f", {count} skipped ({rule})" for rule, count in sorted(listing.skipped.items()))
    size = sum(o.size_bytes for o in listing.objects) / 2**20
    reporter.say(f"{listing.archive_uri}: {len(listing.objects)} volumes, {size:.1f} MiB{skipped}")
    for rule, paths in listing.surprises.items():
        more = ", ..." if listing.skipped[rule] > len(paths) else ""
        reporter.say(f"skipped ({rule}): {', '.join(paths)}{more}")


def say_plan(reporter: Reporter, plan: Plan) -> None:
    """Report how many volumes the plan keeps, embeds, copies and drops, by cause."""
    causes = [f"{count} {cause}" for cause, count in sorted(plan.causes().items())]
    reporter.say(", ".join([*causes, f"{len(plan.gone)} gone"]))


def worst_recall(entries: Sequence[Any]) -> dict[str, float]:
    """The lowest recall@10 per index kind over the snapshot's indices."""
    worst: dict[str, float] = {}
    for entry in entries:
        for kind, value in entry.recall.items():
            worst[kind] = min(value, worst.get(kind, 1.0))
    return worst
