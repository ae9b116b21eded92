"""SIGTERM to the process of a run: row A13 of the faults. tests/chaos stops real runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from medret.errors import StoppedError
from medret.pipeline import stream
from medret.pipeline.stop import Stop


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def in_native_code() -> None:
    """What interrupted native code makes of the exception that a handler raised in it."""
    try:
        terminate()
    except StoppedError as error:
        raise SystemError("returned a result with an exception set") from error


@pytest.mark.parametrize("interrupted", [terminate, in_native_code])
def test_a_signal_ends_the_run_and_is_told_as_such(interrupted: Callable[[], None]) -> None:
    """A13: a signal while Ray's own code ran came out as its SystemError, with a traceback."""
    stop, before = Stop(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="stopped by SIGTERM"), stop.listening():
        interrupted()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_failure_that_no_signal_caused_stays_what_it_is() -> None:
    def fail() -> None:
        terminate()  # noted
        raise ZeroDivisionError

    stop = Stop()
    with pytest.raises(ZeroDivisionError), stop.listening(), stop.deferred():
        fail()


def test_what_is_in_flight_is_finished_and_its_stages_are_told_again_and_again() -> None:
    """A13: a counter that was restarted knew nothing of the stop."""
    stop, told, enough = Stop(), [], threading.Event()

    class Stages:
        def stop(self) -> None:
            told.append(1)
            if len(told) == 2:
                enough.set()

    with stop.listening():
        with stop.draining(Stages()):
            terminate()
            assert enough.wait(10)
        with pytest.raises(StoppedError):
            stop.check()


def test_a_second_signal_or_a_drain_that_hangs_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A13: with a read that hung, the run kept its lease for ever."""
    monkeypatch.setattr("medret.pipeline.stop.DRAIN_S", 0.1)

    class Stages:
        def stop(self) -> None:
            pass

    def hang() -> None:
        terminate()
        threading.Event().wait(30)

    stop = Stop()
    with pytest.raises(StoppedError), stop.listening(), stop.draining(Stages()):
        hang()


def test_a_run_that_was_told_to_stop_begins_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, began = Stop(), []

    def begin(source: int, *_: object) -> stream.Streamed:
        began.append(source)
        return stream.concatenate([])

    monkeypatch.setattr(stream, "asking", lambda _: nullcontext())
    monkeypatch.setattr(stream, "stream", begin)
    work: Any = [SimpleNamespace(source=number, jobs=(), pools=None, asked=()) for number in range(2)]
    stages: Any = None

    def run() -> None:
        with stop.deferred():
            stream.embed(work, stages, stop)
            terminate()
            stream.embed(work, stages, stop)
        stop.check()

    with pytest.raises(StoppedError), stop.listening():
        run()
    assert began == [0, 1]
