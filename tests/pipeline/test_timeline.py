"""Which stage was busy when."""

from __future__ import annotations

import json

import pytest

from medret.pipeline.counter import FIRST_STEP_S, MOST_STEPS, Timeline, idle_share
from medret.pipeline.result import begin


def test_work_is_spread_over_the_steps_it_touches() -> None:
    timeline = Timeline()
    timeline.add("embed", 0.4, 1.1, 10)
    timeline.add("embed", 0.9, 1.4, 5)
    span = timeline.stages["embed"]
    assert span.busy_s == pytest.approx([0.1, 0.6, 0.5])
    assert (span.began_s, span.first_ended_s, span.first_slices, span.ended_s, span.slices) == (0.4, 1.1, 10, 1.4, 15)


def test_a_long_run_has_no_more_steps_and_no_less_work() -> None:
    timeline = Timeline()
    for second in range(1000):
        timeline.add("read", second, second + 0.5, 1)
    span = timeline.stages["read"]
    assert len(span.busy_s) <= MOST_STEPS
    assert sum(span.busy_s) == pytest.approx(500)
    assert timeline.step_s > FIRST_STEP_S
    assert max(span.busy_s) == pytest.approx(timeline.step_s / 2)


def test_idle_time_is_what_the_calls_leave() -> None:
    timeline = Timeline()
    timeline.add("embed", 0, 1, 1)
    timeline.add("embed", 3, 4, 1)
    record = json.loads(json.dumps(timeline.to_json()))
    assert idle_share(record, "embed", 1) == pytest.approx(0.5)
    assert idle_share(record, "embed", 2) == pytest.approx(0.75)


def test_what_began_before_the_run_counts_from_its_start() -> None:
    timeline = Timeline()
    timeline.add("read", -1, 0.25, 1)
    assert sum(timeline.stages["read"].busy_s) == pytest.approx(0.25)


@pytest.mark.parametrize("calls", [[], [(0.5, 0.75, 8)], [(-3, 900, 8), (2, 3, 4)]])  # also of a clock that is wrong
def test_where_the_time_went_adds_up_to_all_of_it(calls: list[tuple[float, float, int]]) -> None:
    log = begin()
    for name in ("list", "weights", "ray", "check", "stream", "arrange", "index", "gates", "publish"):
        with log.phase(name):
            pass
    timeline = Timeline()
    for call in calls:
        timeline.add("embed one", *call)
        timeline.add("read", *call)
    log.facts["timeline"] = timeline.to_json()
    parts = log.waits()
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(log.passed_s, abs=0.02)
    assert ("a model ready" in parts) == bool(calls)
    assert log.facts["waits_s"] == parts
