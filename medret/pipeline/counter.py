"""Count work where it happens. One actor beside the driver adds up; losing it costs a figure, never the run.

The same actor tells tasks when the run is to stop, and how often their work was begun before: Ray repeats, without
limit, whatever dies with its process, be it because of a lost node or because of a volume that kills its reader. Ray
serves the sums to Prometheus beside its own metrics.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medret.errors import MedretError
from medret.pipeline.cluster import name_of
from medret.storage.filesystems import retries

MOST_STEPS = 240
FIRST_STEP_S = 0.5


@dataclass
class Span:
    """One stage. All times are in seconds since the run began.

    began_s: start of the first call. first_ended_s, first_slices: end and slices of the call that ended first. ended_s:
    end of the last call. busy_s: seconds of work per step of the timeline; parallel calls add up to more than a step.
    """

    began_s: float
    first_ended_s: float
    first_slices: int
    ended_s: float
    slices: int = 0
    busy_s: list[float] = field(default_factory=list)


class Timeline:
    """Busy seconds per stage in equal time steps. When there are too many steps, they are joined in pairs."""

    def __init__(self) -> None:
        self.step_s = FIRST_STEP_S
        self.stages: dict[str, Span] = {}

    def add(self, stage: str, began_s: float, ended_s: float, slices: int) -> None:
        """Add a call of `stage`; times in seconds since the run began. A negative start counts as 0."""
        began_s = max(0.0, began_s)
        ended_s = max(began_s, ended_s)
        span = self.stages.setdefault(stage, Span(began_s, ended_s, slices, ended_s))
        span.slices += slices
        span.began_s, span.ended_s = min(span.began_s, began_s), max(span.ended_s, ended_s)
        while ended_s >= MOST_STEPS * self.step_s:
            self._halve()
        last = int(ended_s / self.step_s)
        span.busy_s += [0.0] * (last + 1 - len(span.busy_s))
        for step in range(int(began_s / self.step_s), last + 1):
            edge = step * self.step_s
            span.busy_s[step] += min(ended_s, edge + self.step_s) - max(began_s, edge)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, rounded to milliseconds."""
        stages = {}
        for name, span in self.stages.items():
            facts = {key: round(value, 3) if isinstance(value, float) else value for key, value in vars(span).items()}
            stages[name] = facts | {"busy_s": [round(busy, 3) for busy in span.busy_s]}
        return {"step_s": self.step_s, "stages": stages}

    def _halve(self) -> None:
        """Join every two steps."""
        self.step_s *= 2
        for span in self.stages.values():
            span.busy_s = [sum(span.busy_s[at : at + 2]) for at in range(0, len(span.busy_s), 2)]


def idle_share(timeline: dict[str, Any], stage: str, parallel: int) -> float:
    """The share of a stage's time, from its first call to its last, that its `parallel` workers were idle.

    timeline: as `Timeline.to_json` returns it.
    """
    span, step_s = timeline["stages"][stage], timeline["step_s"]
    length = span["ended_s"] - span["began_s"]
    busy = sum(min(busy, step_s * parallel) for busy in span["busy_s"])
    return max(0.0, 1 - busy / (length * parallel)) if length > 0 else 0.0


TALK_S = 0.5  # between two calls of one task to the counter, the one actor that serves all tasks of a cluster
ANSWER_S = 30.0  # how long anyone waits for the counter
MOST_BEGINNINGS = 8  # of one piece of work, before the run gives up


@dataclass(frozen=True)
class StageCount:
    """What one stage has done. seconds: processing time, summed over tasks. retries: repeated storage requests."""

    volumes: int = 0
    slices: int = 0
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0

    def plus(self, other: StageCount) -> StageCount:
        """The sum of both."""
        return StageCount(
            self.volumes + other.volumes,
            self.slices + other.slices,
            self.bytes + other.bytes,
            self.seconds + other.seconds,
            self.retries + other.retries,
        )


NO_COUNTS: Mapping[str, StageCount] = {}


class RunMetrics:
    """Prometheus counters of the work done, served by Ray; deploy/grafana.json shows them."""

    def __init__(self) -> None:
        by_stage = ("stage",)
        self._volumes = metrics.Counter("medret_volumes", "volumes through a stage", by_stage)
        self._slices = metrics.Counter("medret_slices", "slices through a stage", by_stage)
        self._seconds = metrics.Counter("medret_stage_seconds", "seconds of processing in a stage", by_stage)
        self._retries = metrics.Counter("medret_storage_retries", "storage requests that were repeated", by_stage)
        self._codes = metrics.Counter("medret_quarantined", "volumes put into quarantine", ("code",))

    def stage(self, stage: str, volumes: int, slices: int, seconds: float, retries: int) -> None:
        """Add a batch of a stage. seconds: of processing."""
        counters = (self._volumes, self._slices, self._seconds, self._retries)
        for counter, value in zip(counters, (volumes, slices, seconds, retries), strict=True):
            if value > 0:
                counter.inc(value, {"stage": stage})

    def quarantined(self, code: str) -> None:
        """Count a quarantined volume."""
        self._codes.inc(1, {"code": code})


class StageCounter:
    """Adds up what tasks and actors report. `Counting` is the driver's side, `Tally` the side of a task.

    started: start of the run, in seconds since the epoch.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._timeline = Timeline()
        self._stages: dict[str, StageCount] = {}
        self._nodes: dict[str, Counter[str]] = {}
        self._stopping = False
        self._begun: Counter[tuple[str, str]] = Counter()
        self._open: dict[str, float] = {}
        self._deaths: Counter[str] = Counter()
        self._metrics = RunMetrics()

    def add(self, stage: str, added: StageCount, ended: float, node_id: str) -> None:
        """Add a finished batch of a stage on a node. ended: seconds since the epoch."""
        passed = ended - self._started
        self._nodes.setdefault(node_id, Counter())[stage] += added.volumes
        self._timeline.add(stage, passed - added.seconds, passed, added.slices)
        self._stages[stage] = self._stages.get(stage, StageCount()).plus(added)
        self._metrics.stage(stage, added.volumes, added.slices, added.seconds, added.retries)

    def quarantined(self, code: str) -> None:
        """Count a quarantined volume."""
        self._metrics.quarantined(code)

    def begin(self, stage: str, key: str) -> int:
        """Count that a piece of work begins; return how often it has begun since it was last done."""
        self._begun[stage, key] += 1
        return self._begun[stage, key]

    def done(self, stage: str, key: str) -> None:
        """Record that a piece of work is done."""
        del self._begun[stage, key]

    def open(self, volume_id: str, now: float) -> tuple[int, float]:
        """Record that a volume is about to be read. Return how often its reader has died, and the last one's seconds.

        now: seconds since the epoch.
        """
        began = self._open.get(volume_id)
        self._deaths[volume_id] += began is not None
        self._open[volume_id] = now
        return self._deaths[volume_id], now - (began or now)

    def close(self, volume_id: str) -> None:
        """Record that the volume was read or quarantined."""
        self._open.pop(volume_id, None)

    def stages(self) -> dict[str, StageCount]:
        """The sums so far, by stage; repeated work counts twice."""
        return dict(self._stages)

    def nodes(self) -> dict[str, dict[str, int]]:
        """The volumes of each stage, by the id of the node that worked on them."""
        return {node_id: dict(volumes) for node_id, volumes in self._nodes.items()}

    def timeline(self) -> dict[str, Any]:
        """When each stage was busy; see Timeline.to_json."""
        return self._timeline.to_json()

    def stop(self) -> None:
        """Tell all tasks to finish what they have begun, and to begin nothing more."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether the run is stopping."""
        return self._stopping


class Counting:
    """The driver's side of the counter. When the counter does not answer, its last answer stands."""

    def __init__(self, started: float) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, scheduling_strategy=here)(StageCounter)  # type: ignore[call-overload]
        self.handle: Any = actor.remote(started)
        self._last: dict[str, Any] = {}

    def stages(self) -> Mapping[str, StageCount]:
        """The sums so far, by stage."""
        found: Mapping[str, StageCount] = self._ask("stages", NO_COUNTS)
        return found

    def timeline(self) -> dict[str, Any]:
        """When each stage was busy; see Timeline.to_json."""
        found: dict[str, Any] = self._ask("timeline", {"step_s": 0.0, "stages": {}})
        return found

    def nodes(self) -> dict[str, dict[str, int]]:
        """The volumes of each stage, by the name of the node that worked on them, for the run report."""
        names = {node["NodeID"]: name_of(node) for node in ray.nodes()}
        found: dict[str, dict[str, int]] = self._ask("nodes", {})
        return {names.get(node_id, node_id): volumes for node_id, volumes in found.items()}

    def stop(self) -> None:
        """Tell all tasks to begin nothing more."""
        self.handle.stop.remote()

    def _ask(self, what: str, nothing: Any) -> Any:
        answer = _answer(getattr(self.handle, what).remote, (), None)
        if answer is not None:
            self._last[what] = answer
        return self._last.get(what, nothing)


class Tally:
    """One task's side of the counter. Reports at most every TALK_S seconds, except for what begins.

    Also counts the storage requests repeated since it was created.
    """

    def __init__(self, counter: Any, stage: str) -> None:
        self._counter = counter
        self._stage = stage
        self._node_id = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        self._retries = retries()
        self._unsaid = StageCount()
        self._said = self._asked = -math.inf
        self._stopping = False

    def begin(self, volumes: list[str], most: int = MOST_BEGINNINGS) -> int:
        """Count that this work begins; return how often it has. Raise MedretError if that is more than `most` times."""
        times: int = _answer(self._counter.begin.remote, (self._stage, volumes[0]), 1)
        if times > most:
            raise MedretError(
                f"{self._stage}: the process that worked on {volumes[0]} and the {len(volumes) - 1} volumes after it "
                f"died {times - 1} times; check that the machine has enough memory, and run again"
            )
        return times

    def done(self, volumes: list[str]) -> None:
        """Record that the work on these volumes is done."""
        self._counter.done.remote(self._stage, volumes[0])

    def open(self, volume_id: str) -> tuple[int, float]:
        """Record that a volume is about to be read; see StageCounter.open."""
        found: tuple[int, float] = _answer(self._counter.open.remote, (volume_id, time.time()), (0, 0.0))
        return found

    def close(self, volume_id: str) -> None:
        """Record that the volume was read or quarantined."""
        self._counter.close.remote(volume_id)

    def add(self, volumes: int, slices: int, size_bytes: int, seconds: float) -> None:
        """Count finished work. It is reported now, with later work, or at the latest by `report`."""
        self._unsaid = self._unsaid.plus(StageCount(volumes, slices, size_bytes, seconds))
        if time.monotonic() - self._said > TALK_S:
            self.report()

    def report(self) -> None:
        """Report what was counted since the last report."""
        now = retries()
        said, self._unsaid = self._unsaid.plus(StageCount(retries=now - self._retries)), StageCount()
        self._retries, self._said = now, time.monotonic()
        if said != StageCount():
            self._counter.add.remote(self._stage, said, time.time(), self._node_id)

    def is_stopping(self) -> bool:
        """Whether the run is stopping; False if the counter does not answer."""
        if not self._stopping and time.monotonic() - self._asked > TALK_S:
            self._stopping = bool(_answer(self._counter.stopping.remote, (), False))
            self._asked = time.monotonic()
        return self._stopping

    def quarantined(self, code: str) -> None:
        """Report a quarantined volume."""
        self._counter.quarantined.remote(str(code))


def _answer(ask: Any, words: tuple[Any, ...], otherwise: Any) -> Any:
    """The counter's answer, or `otherwise` if it is lost or silent."""
    try:
        return ray.get(ask(*words), timeout=ANSWER_S)
    except (ray.exceptions.RayError, TimeoutError):
        return otherwise
