"""Which stage was busy when: a record of fixed size for a run of any length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MOST_STEPS = 240
FIRST_STEP_S = 0.5


@dataclass
class Span:
    """One stage. All times in seconds since the run began.

    began_s: of its first call; first_ended_s, first_slices: the call that ended first; ended_s: of its last call.
    busy_s: seconds of work in each step of the timeline; more than a step's length where calls ran side by side.
    """

    began_s: float
    first_ended_s: float
    first_slices: int
    ended_s: float
    slices: int = 0
    busy_s: list[float] = field(default_factory=list)


class Timeline:
    """Busy seconds of every stage in equal steps of time. When there are too many, each step becomes twice as long."""

    def __init__(self) -> None:
        self.step_s = FIRST_STEP_S
        self.stages: dict[str, Span] = {}

    def add(self, stage: str, began_s: float, ended_s: float, slices: int) -> None:
        """A call of `stage`, in seconds since the run began; what began before that counts from its start."""
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

    def told(self) -> dict[str, Any]:
        """For the run report: JSON's own types, rounded to milliseconds."""
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


def idle_share(told: dict[str, Any], stage: str, at_once: int) -> float:
    """The share of a stage's time, from its first call to its last, that `at_once` calls side by side left unused."""
    span, step_s = told["stages"][stage], told["step_s"]
    length = span["ended_s"] - span["began_s"]
    busy = sum(min(busy, step_s * at_once) for busy in span["busy_s"])
    return max(0.0, 1 - busy / (length * at_once)) if length > 0 else 0.0
