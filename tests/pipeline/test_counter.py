from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medret.pipeline.counter import StageCount, StageCounter, Tally


class Counter:
    """In place of the actor: keeps what it is told, and says whether to stop."""

    def __init__(self) -> None:
        self.said: list[StageCount] = []
        self.asked = 0
        self.stop = False
        self.add = SimpleNamespace(remote=lambda _stage, count, _ended, _node: self.said.append(count))
        self.stopping = SimpleNamespace(remote=self._stopping)

    def _stopping(self) -> bool:
        self.asked += 1
        return self.stop


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`clock.now`, in seconds; Ray's answers are the values themselves."""
    own = SimpleNamespace(now=100.0)
    monkeypatch.setattr("medret.pipeline.counter.time.monotonic", lambda: own.now)
    monkeypatch.setattr("medret.pipeline.counter.ray.get", lambda value, **_: value)
    return own


def test_a_tally_tells_all_it_counts_but_not_one_by_one(clock: Any) -> None:
    counter = Counter()
    tally = Tally(counter, "read")
    tally.add(1, 16, 100, 0.1)
    assert counter.said == [StageCount(1, 16, 100, 0.1)]  # the first is told at once
    for _ in range(4):
        clock.now += 0.2
        tally.add(1, 16, 100, 0.25)
    assert counter.said[1:] == [StageCount(3, 48, 300, 0.75)]
    tally.report()
    tally.report()
    assert counter.said[2:] == [StageCount(1, 16, 100, 0.25)]


def test_a_tally_asks_now_and_then_whether_to_stop(clock: Any) -> None:
    counter = Counter()
    tally = Tally(counter, "read")
    assert not any(tally.is_stopping() for _ in range(5))
    counter.stop = True
    assert not tally.is_stopping()
    assert counter.asked == 1
    clock.now += 1
    assert tally.is_stopping()
    counter.stop = False
    clock.now += 1
    assert tally.is_stopping()  # a run that is to stop does not go on
    assert counter.asked == 2


def test_the_counter_knows_which_node_worked_on_how_many_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medret.pipeline.counter.RunMetrics", lambda: SimpleNamespace(stage=lambda *_: None))
    counter = StageCounter(0.0)
    for stage, volumes, node in (("read", 2, "a"), ("read", 3, "b"), ("write", 5, "a"), ("read", 1, "a")):
        counter.add(stage, StageCount(volumes), 1.0, node)
    assert counter.nodes() == {"a": {"read": 3, "write": 5}, "b": {"read": 3}}
