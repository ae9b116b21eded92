"""The run report: what a run was asked to do, what it did and how long each phase took."""

from __future__ import annotations

import json
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from medret._version import __version__
from medret.errors import GateError, MedretError, StorageError
from medret.storage import Location

PACKAGES = ("ray", "torch", "timm", "transformers", "dreamsim", "faiss-gpu", "faiss-cpu", "pyarrow", "nibabel", "numpy")


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
        begin = ends["stream"] - phases["stream"]
        stages = self.facts.get("timeline", {}).get("stages", {})
        calls = [span for stage, span in stages.items() if stage.startswith("embed ")]
        listing, ray = ends["weights"], phases["ray"]
        parts = {"listing": listing, "Ray": ray, "planning": begin - listing - ray}
        if calls:  # by the clocks of the nodes, which may differ from the driver's
            ready = min(max(begin, min(span["began_s"] for span in calls)), ends["stream"])
            first = min(max(ready, min(span["first_ended_s"] for span in calls)), ends["stream"])
            parts |= {
                "a model ready": ready - begin,
                "first slices": first - ready,
                "embedding": ends["stream"] - first,
            }
        else:
            parts["planning"] += phases["stream"]
        parts |= {"indices": ends["gates"] - ends["stream"], "publishing": self.passed_s - ends["gates"]}
        self.facts["waits_s"] = {name: round(seconds, 3) for name, seconds in parts.items()}
        return dict(self.facts["waits_s"])

    def write(self, store: Location) -> str:
        """Write the report; returns its path below the store."""
        return write_report(store, self.run, self.started, self.phases_s, {"driver": self.driver} | self.facts)

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


def write_report(
    store: Location, run: str, started: datetime, phases_s: Mapping[str, float], facts: Mapping[str, Any]
) -> str:
    """Write runs/<run>-<sha256[:16]>.json; returns its path below the store.

    phases_s: wall seconds per phase, in order. facts: everything else worth knowing, as JSON values.
    """
    finished = datetime.now(UTC)
    content = {
        "run": run,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "medret": __version__,
        "python": platform.python_version(),
        "packages": _versions(),
        "phases_s": dict(phases_s),
        "driver_cpu_s": round(time.process_time(), 3),
        "driver_peak_mib": peak_mib(),
        **facts,
    }
    data = (json.dumps(content, indent=1, default=str) + "\n").encode()
    return store.write_content_addressed("runs", run, ".json", data).path


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
