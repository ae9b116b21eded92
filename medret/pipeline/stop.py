"""SIGTERM: what is in flight is finished and kept, nothing more is begun, and the run ends with one line."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from medret.errors import StoppedError

TELL_EVERY_S = 0.2
DRAIN_S = 240.0  # that a run waits for what is in flight: less than the five minutes that pods and services get


class Told(Protocol):
    """What can be told to stop."""

    def stop(self) -> None:
        """Begin nothing more."""


class Stop:
    """Whether the run was told to stop. While a stream runs, it drains; at any other time, the run ends at once."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._listening = False
        self._deferred = False
        self._cut_short = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM while the block runs. Elsewhere than in the main thread, Python allows no handler."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_signal)
        self._listening = True
        try:
            with self.told():
                yield
        finally:
            self._listening = False
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell of the signal that cut the block short, whatever came of it: native code fails in ways of its own."""
        try:
            yield
        except StoppedError:
            raise
        except Exception:
            if self._cut_short:
                self.check()
            raise

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A first signal during the block does not cut it short: `check` tells of it afterwards."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def draining(self, stages: Told) -> Iterator[None]:
        """While the block runs, a signal tells the stages (by way of their counter) to begin nothing more."""
        over = threading.Event()
        thread = threading.Thread(target=self._pass_on, args=(stages, over), daemon=True)
        thread.start()
        try:
            with self.deferred():
                yield
        finally:
            over.set()
            thread.join(timeout=10)

    def check(self) -> None:
        """Raises StoppedError if the run was told to stop."""
        if self._asked.is_set():
            raise StoppedError("stopped by SIGTERM; finished volumes are kept, and the next run goes on from there")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again = self._asked.is_set()
        self._asked.set()
        if again or not self._deferred:
            self._cut_short = True
            self.check()

    def _pass_on(self, stages: Told, over: threading.Event) -> None:
        # Not in the signal handler: it may have interrupted Ray's own code.
        waited_s = 0.0
        while not over.wait(TELL_EVERY_S):
            if self._asked.is_set():
                stages.stop()  # again and again: it may have been restarted since
                waited_s += TELL_EVERY_S
                if waited_s > DRAIN_S:  # something hangs: as a second signal would
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
