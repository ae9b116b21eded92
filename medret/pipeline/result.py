"""What a run says: its outcome, its failure, and the lines on the way."""

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
    root = None
    while link is not None:
        if isinstance(link, MedretError) and not isinstance(link, ray.exceptions.RayError):
            return link
        if not isinstance(link, ray.exceptions.RayError):
            root = link
        link = getattr(link, "cause", None) or link.__cause__
    # Ray keeps the root of a chain alone: what medret said of it, with the path, is left in the text of the trace.
    if said := list(MEDRETS.finditer(str(error))):
        kind = getattr(errors, said[-1]["kind"], MedretError)
        return (kind if kind is not VolumeError else MedretError)(said[-1]["text"])
    cause = f"{type(root).__name__}: {root}" if root else _raised_last(str(error)) or repr(error)
    return MedretError(f"a worker failed and its work could not be repeated: {_one_line(cause)}")


def _raised_last(text: str) -> str | None:
    """The first line in which a trace ends: the exception that began it all."""
    return next((line for line in text.splitlines() if RAISED.match(line)), None)


def _one_line(text: str) -> str:
    """Without what Ray adds on how to set retries."""
    text = RAYS_ADVICE.split(text)[0]
    return " ".join(line.strip() for line in text.splitlines() if line.strip()).removesuffix(": ")


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
