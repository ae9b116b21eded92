"""Volumes that kill or hang their reader: row A21 of the faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from medret.errors import MedretError, QuarantineCode, VolumeError
from medret.pipeline import read_stage
from medret.pipeline.counter import Counting, StageCounter, Tally
from medret.pipeline.read_stage import DEATHS, HANG_S, surviving

VOLUMES = [f"v{number}" for number in range(8)]


class Local:
    """The counter without Ray: `ray.get` gives back what is called."""

    def __init__(self) -> None:
        self._counter = StageCounter(0.0)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._counter, name))


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Local:
    """A counter in this process."""
    monkeypatch.setattr("medret.pipeline.counter.ray.get", lambda value, **_: value)
    monkeypatch.setattr("medret.pipeline.counter.RunMetrics", lambda: None)
    return Local()


def repeated(counter: Any, deadly_ones: set[str], most: int = 100) -> tuple[dict[str, Any], int]:
    """What a read task gives at last, repeated as Ray does it, and how often it died before."""
    rows = [{"volume_id": name} for name in VOLUMES]

    def contents(wanted: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes | VolumeError]]:
        for row in wanted:
            if row["volume_id"] in deadly_ones:
                raise Killed
            yield row, b"bytes"

    for died in range(most):
        try:
            return {row["volume_id"]: each for row, each in surviving(rows, contents, Tally(counter, "read"))}, died
        except Killed:
            continue
    raise AssertionError("it never ended")


@pytest.mark.parametrize("poison", [set(), {"v0"}, {"v7"}, {"v2", "v3"}, set(VOLUMES)])
def test_what_kills_its_reader_is_refused_and_nothing_else(counter: Local, poison: set[str]) -> None:
    """A21: a volume that took all memory killed its worker without end ("infinite retries remaining")."""
    found, died = repeated(counter, poison)
    assert list(found) == VOLUMES
    assert {name for name, each in found.items() if isinstance(each, VolumeError)} == poison
    assert {each.code for each in found.values() if isinstance(each, VolumeError)} <= {QuarantineCode.TOO_LARGE}
    assert died == (1 + DEATHS * len(poison) if poison else 0)


def test_a_reader_that_hung_says_that_its_store_does_not_answer(
    counter: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A21"""
    clock = iter(range(0, 10**6, int(HANG_S)))
    monkeypatch.setattr("medret.pipeline.counter.time.time", lambda: next(clock))
    found, _ = repeated(counter, {"v1"})
    assert found["v1"].code == QuarantineCode.UNREADABLE


def test_work_that_always_dies_is_given_up(counter: Local) -> None:
    """A21: with a line, not after six hours without progress."""
    for _ in range(8):
        Tally(counter, "embed").begin(VOLUMES)
    with pytest.raises(MedretError, match="worked on v0 and the 7 volumes after it died 8 times"):
        Tally(counter, "embed").begin(VOLUMES)
    Tally(counter, "embed").done(VOLUMES)
    assert Tally(counter, "embed").begin(VOLUMES) == 1


def test_a_process_that_hangs_in_native_code_ends_itself() -> None:
    """A21: a read that never returns kept its task, and so the run and its lease, for ever."""
    script = """
import ctypes
from medret.pipeline import read_stage
read_stage.HANG_S = 0.3
with read_stage.ended_if_hung():
    pass
ctypes.PyDLL(None).usleep(500_000)  # holds the interpreter's lock
print("alive", flush=True)
with read_stage.ended_if_hung():
    ctypes.PyDLL(None).sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.returncode) == ("alive\n", 1)


def _read(table: pa.Table, counter: Any) -> Iterator[pa.Table]:
    def contents(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes | VolumeError]]:
        for row in rows:
            if row["volume_id"] == "v2":
                os.kill(os.getpid(), signal.SIGKILL)
            yield row, b"bytes"

    for row, content in surviving(table.to_pylist(), contents, Tally(counter, "read")):
        code = content.code if isinstance(content, VolumeError) else None
        yield pa.table({"volume_id": [row["volume_id"]], "code": pa.array([code], pa.string())})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_stream_outlives_its_poison() -> None:
    """A21, in Ray's own workers; and the counter lives on the driver's node (A4)."""
    import ray
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    counting = Counting(0.0)
    source = ray.data.from_blocks([pa.table({"volume_id": VOLUMES})])
    read = source.map_batches(_read, batch_format="pyarrow", batch_size=None, fn_kwargs={"counter": counting.handle})
    codes = {row["volume_id"]: row["code"] for row in read.take_all()}
    assert codes == dict.fromkeys(VOLUMES) | {"v2": "too_large"}
    assert read_stage.DEATHS == 2
    ray.kill(counting.handle)  # lost: a figure, never the run
    assert counting.stages() == {}
