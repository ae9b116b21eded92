"""Counting work where it happens, and showing it where a person looks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medret.pipeline.metrics import RunMetrics
from medret.pipeline.timeline import Timeline
from medret.retry import retries
from medret.terminal import Terminal

POLL_S = 0.5
PLAIN_EVERY_S = 15.0
TALK_S = 0.5  # between two words of one task with the counter: one actor answers all tasks of a cluster


@dataclass(frozen=True)
class StageCount:
    """What one stage has done. seconds: of processing, summed over its tasks. retries: requests that were repeated."""

    volumes: int = 0
    slices: int = 0
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0

    def plus(self, other: StageCount) -> StageCount:
        """Both together."""
        return StageCount(
            self.volumes + other.volumes,
            self.slices + other.slices,
            self.bytes + other.bytes,
            self.seconds + other.seconds,
            self.retries + other.retries,
        )


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)
class StageCounter:
    """Adds up what tasks and actors report; tells them when the run is to stop. One a run.

    started: of the run, in seconds since the epoch.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._timeline = Timeline()
        self._stages: dict[str, StageCount] = {}
        self._codes: dict[str, int] = {}
        self._stopping = False
        self._metrics = RunMetrics()

    def add(self, stage: str, added: StageCount, ended: float) -> None:
        """Add a finished batch of a stage. ended: in seconds since the epoch."""
        passed = ended - self._started
        self._timeline.add(stage, passed - added.seconds, passed, added.slices)
        self._stages[stage] = self._stages.get(stage, StageCount()).plus(added)
        self._metrics.stage(stage, added.volumes, added.slices, added.seconds, added.retries)

    def quarantined(self, code: str) -> None:
        """Count a refused volume."""
        self._codes[code] = self._codes.get(code, 0) + 1
        self._metrics.quarantined(code)

    def stages(self) -> dict[str, StageCount]:
        """The sums so far, by stage."""
        return dict(self._stages)

    def timeline(self) -> dict[str, Any]:
        """Which stage was busy when; see Timeline.told."""
        return self._timeline.told()

    def stop(self) -> None:
        """Let what is in flight finish, and begin nothing more."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether the run is to stop."""
        return self._stopping


class Tally:
    """One task's reports to the counter, and whether the counter wants it to go on; at most every TALK_S seconds.

    Counts the storage requests repeated since it was made.
    """

    def __init__(self, counter: Any, stage: str) -> None:
        self._counter = counter
        self._stage = stage
        self._retries = retries()
        self._unsaid = StageCount()
        self._said = self._asked = -math.inf
        self._stopping = False

    def add(self, volumes: int, slices: int, size_bytes: int, seconds: float) -> None:
        """Count what was just finished; reported now or with what comes next, at the latest by `report`."""
        self._unsaid = self._unsaid.plus(StageCount(volumes, slices, size_bytes, seconds))
        if time.monotonic() - self._said > TALK_S:
            self.report()

    def report(self) -> None:
        """Report what was counted since the last time."""
        now = retries()
        said, self._unsaid = self._unsaid.plus(StageCount(retries=now - self._retries)), StageCount()
        self._retries, self._said = now, time.monotonic()
        if said != StageCount():
            self._counter.add.remote(self._stage, said, time.time())

    def is_stopping(self) -> bool:
        """Whether the run is to stop; a counter that cannot answer stops nobody."""
        if not self._stopping and time.monotonic() - self._asked > TALK_S:
            try:
                self._stopping = bool(ray.get(self._counter.stopping.remote(), timeout=30))
            except (ray.exceptions.RayError, TimeoutError):
                self._stopping = False
            self._asked = time.monotonic()
        return self._stopping

    def quarantined(self, code: str) -> None:
        """Report a refused volume."""
        self._counter.quarantined.remote(str(code))


class Reporter:
    """Tells a person how far the run is: a live bar on a terminal, a line now and then elsewhere, nothing if quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Terminal(stderr=True, quiet=quiet)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def watching(self, counter: Any, volumes: int, watched: str) -> Iterator[None]:
        """Show the progress of stage `watched` of `volumes` volumes until the block ends."""
        if self.quiet:
            yield
            return
        stop = threading.Event()
        show = self._bar if self.console.is_terminal else self._lines
        thread = threading.Thread(target=show, args=(counter, volumes, watched, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)

    def _bar(self, counter: Any, volumes: int, watched: str, stop: threading.Event) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("volumes"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("embedding", total=volumes, rate="")
            started = time.monotonic()
            while not stop.wait(POLL_S):
                done = _poll(counter, watched)
                rate = f"{done.slices} slices, {done.slices / (time.monotonic() - started):.1f}/s"
                progress.update(task, completed=done.volumes, rate=rate)

    def _lines(self, counter: Any, volumes: int, watched: str, stop: threading.Event) -> None:
        started = time.monotonic()
        while not stop.wait(PLAIN_EVERY_S):
            done, passed = _poll(counter, watched), time.monotonic() - started
            left = passed / done.volumes * (volumes - done.volumes) if done.volumes else float("nan")
            self.say(
                f"{done.volumes}/{volumes} volumes, {done.slices} slices, {done.slices / passed:.1f} slices/s, "
                + (f"about {left:.0f} s left" if done.volumes else "starting")
            )


def _poll(counter: Any, watched: str) -> StageCount:
    stages: dict[str, StageCount] = ray.get(counter.stages.remote())
    return stages.get(watched, StageCount())
