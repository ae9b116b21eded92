"""When each stage was busy: a record of fixed size for a run of any length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
