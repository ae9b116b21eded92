"""What a run reports: its progress, lines on the way, its outcome, its failure and the run report."""

from __future__ import annotations

import json
import logging
import platform
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medret import errors
from medret._version import __version__
from medret.archive import LabelJoin, Listing
from medret.errors import GateError, MedretError, StorageError, VolumeError
from medret.pipeline.counter import Counting, StageCount
from medret.pipeline.gates import Losses, label_lines
from medret.pipeline.plan import Plan
from medret.schemas import give_back
from medret.snapshot import Counts, RecipeEntry
from medret.storage import Location
from medret.terminal import Terminal

logger = logging.getLogger(__name__)

POLL_S = 0.5
PLAIN_EVERY_S = 15.0

RAYS_ADVICE = re.compile(r"^(?:Failed to .* after \d+/\d+ attempts|To change retry attempts)", re.MULTILINE)
MEDRETS = re.compile(r"^medret\.errors\.(?P<kind>\w+): (?P<text>.+)$", re.MULTILINE)
RAISED = re.compile(r"(?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception)\b")

PACKAGES = ("ray", "torch", "timm", "transformers", "dreamsim", "faiss-gpu", "faiss-cpu", "pyarrow", "nibabel", "numpy")


class Reporter:
    """Shows how far the run is: a live bar on a terminal, a line every 15 s elsewhere.

    quiet: send these lines to the log instead, and show no progress. warns: print warnings even if quiet; defaults to
    `not quiet`. fields: added to every log record, such as the run.
    """

    def __init__(self, *, quiet: bool = False, warns: bool | None = None) -> None:
        self.console = Terminal(stderr=True, quiet=quiet)
        self.quiet = quiet
        self.fields: dict[str, str] = {}
        self._warns = not quiet if warns is None else warns
        self._warnings = Terminal(stderr=True) if quiet else self.console  # prints above the live bar

    def say(self, text: str) -> None:
        """Print one line, or log it."""
        if self.quiet:
            logger.info("%s", text, extra=self.fields)
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line about a problem that was solved, or log it."""
        if self._warns:
            self._warnings.print(text, markup=False, soft_wrap=True)
        else:
            logger.warning("%s", text, extra=self.fields)

    @contextmanager
    def watching(self, counts: Counting, volumes: int, watched: str) -> Iterator[None]:
        """Show the progress of stage `watched` of `volumes` volumes until the block ends."""
        stop = threading.Event()
        show = self._bar if self.console.is_terminal and not self.quiet else self._lines
        thread = threading.Thread(target=show, args=(counts, volumes, watched, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)

    def _bar(self, counts: Counting, volumes: int, watched: str, stop: threading.Event) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("volumes"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("embedding", total=volumes, rate="")
            started = time.monotonic()
            while not stop.wait(POLL_S):
                done = _poll(counts, watched)
                rate = f"{done.slices} slices, {done.slices / (time.monotonic() - started):.1f}/s"
                progress.update(task, completed=done.volumes, rate=rate)

    def _lines(self, counts: Counting, volumes: int, watched: str, stop: threading.Event) -> None:
        started = time.monotonic()
        while not stop.wait(PLAIN_EVERY_S):
            done, passed = _poll(counts, watched), time.monotonic() - started
            left = passed / done.volumes * (volumes - done.volumes) if done.volumes else float("nan")
            self.say(
                f"{done.volumes}/{volumes} volumes, {done.slices} slices, {done.slices / passed:.1f} slices/s, "
                + (f"about {left:.0f} s left" if done.volumes else "starting")
            )


def _poll(counts: Counting, watched: str) -> StageCount:
    return counts.stages().get(watched, StageCount())


def say_listing(reporter: Reporter, listing: Listing) -> None:
    """Report what the listing found."""
    skipped = "".join(f", {count} skipped ({rule})" for rule, count in sorted(listing.skipped.items()))
    size = (pc.sum(listing.objects["size_bytes"]).as_py() or 0) / 2**20
    reporter.say(f"{listing.archive_uri}: {listing.objects.num_rows} volumes, {size:.1f} MiB{skipped}")
    for note in listing.notes:
        reporter.say(note)
    for rule, paths in listing.surprises.items():
        more = ", ..." if listing.skipped[rule] > len(paths) else ""
        reporter.say(f"skipped ({rule}): {', '.join(paths)}{more}")


def say_labels(reporter: Reporter, labels: LabelJoin) -> None:
    """Report which labels were found, and where."""
    for line in label_lines(labels):
        reporter.say(line)


def say_plan(reporter: Reporter, plan: Plan) -> None:
    """Report how many volumes the plan keeps, embeds, copies and drops, by cause."""
    causes = [f"{count} {cause}" for cause, count in sorted(plan.causes().items())]
    reporter.say(", ".join([*causes, f"{len(plan.gone)} gone"]))


@dataclass(frozen=True)
class IndexOutcome:
    """What a run did.

    snapshot: id of the live snapshot. published: whether this run published it. touched: volumes with a new mtime or
    etag and the same content. resumed: volumes that an unfinished run had embedded. returned: volumes whose vectors
    came from an older snapshot. lost: losses among the volumes that were live. stale: volumes that cannot be read now
    and keep their vectors (schemas.QUARANTINE). skipped: objects skipped per rule. labels: how labels matched, in
    counts. slices: slices embedded by this run, summed over models. quarantine: schemas.QUARANTINE. seconds: of the
    whole run. streaming_s: seconds from reading to writing. recall: lowest recall@10 per index kind. report: path below
    the store; None if there was nothing to do. waits_s: where the time went (Log.waits); empty then.
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
    waits_s: Mapping[str, float] = field(default_factory=dict)

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


@dataclass
class Log:
    """Collects the content of the run report while the run goes on.

    phases_s: seconds of each phase. ends_s: when each ended, in seconds since the run began. driver: per phase,
    seconds of its processor time, and the most memory that it has held until then.
    """

    run: str
    started: datetime
    phases_s: dict[str, float] = field(default_factory=dict)
    ends_s: dict[str, float] = field(default_factory=dict)
    driver: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    clock: float = field(default_factory=time.monotonic)

    @property
    def passed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.clock

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block: its wall time, the driver's processor time meanwhile, and its peak memory until then."""
        start, spent = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self.phases_s[name] = round(self.phases_s.get(name, 0.0) + time.monotonic() - start, 3)
            cpu_s = self.driver.get(name, {}).get("cpu_s", 0.0) + time.process_time() - spent
            self.driver[name] = {"cpu_s": round(cpu_s, 3), "peak_mib": peak_mib()}
            self.ends_s[name] = self.passed_s
            give_back()

    @contextmanager
    def entering(self, name: str, context: AbstractContextManager[object]) -> Iterator[None]:
        """Measure as a phase how long it takes to enter the context that the block runs in."""
        with ExitStack() as stack:
            with self.phase(name):
                stack.enter_context(context)
            yield

    def waits(self) -> dict[str, float]:
        """Note where the time of a run went that published: seconds of each part, in order; they add up to all of it.

        `a model ready` ends when the first call of a model begins, and `first slices` when the first call ends. Both
        are missing if no model ran.
        """
        ends, phases = self.ends_s, self.phases_s
        began = ends["stream"] - phases["stream"]
        stages = self.facts.get("timeline", {}).get("stages", {})
        calls = [span for stage, span in stages.items() if stage.startswith("embed ")]
        listing, connecting = ends["weights"], phases["ray"]
        parts = {"listing": listing, "Ray": connecting, "planning": began - listing - connecting}
        if calls:  # by the clocks of the nodes, which may differ from the driver's
            ready = min(max(began, min(span["began_s"] for span in calls)), ends["stream"])
            first = min(max(ready, min(span["first_ended_s"] for span in calls)), ends["stream"])
            parts |= {
                "a model ready": ready - began,
                "first slices": first - ready,
                "embedding": ends["stream"] - first,
            }
        else:
            parts["planning"] += phases["stream"]
        parts |= {"indices": ends["gates"] - ends["stream"], "publishing": self.passed_s - ends["gates"]}
        self.facts["waits_s"] = {name: round(seconds, 3) for name, seconds in parts.items()}
        return dict(self.facts["waits_s"])

    def written(self, store: Location, warn: Callable[[str], None]) -> str | None:
        """As `write`; None, after a warning, where that is not possible: what is published stays so without it."""
        try:
            return self.write(store)
        except StorageError as error:
            warn(f"published, but without a report of the run: {error}")
            return None

    def write(self, store: Location) -> str:
        """Write the report, runs/<run>-<sha256[:16]>.json; returns its path below the store."""
        content = {
            "run": self.run,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "medret": __version__,
            "python": platform.python_version(),
            "packages": _versions(),
            "phases_s": self.phases_s,
            "driver_cpu_s": round(time.process_time(), 3),
            "driver_peak_mib": peak_mib(),
            "driver": self.driver,
            **self.facts,
        }
        data = (json.dumps(content, indent=1, default=str) + "\n").encode()
        return store.write_content_addressed("runs", self.run, ".json", data).path

    def failed(self, store: Location, failure: MedretError) -> None:
        """Write the report of a failed run, if the store can be written: the failure itself matters more."""
        self.facts |= {"outcome": "refused" if isinstance(failure, GateError) else "failed", "error": str(failure)}
        with suppress(StorageError):
            self.write(store)


def peak_mib() -> float:
    """The most memory that this process has held at once, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def begin() -> Log:
    """Start the log of a run, now."""
    started = datetime.now(UTC)
    return Log(run=f"{started:%Y%m%dT%H%M%SZ}", started=started)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
