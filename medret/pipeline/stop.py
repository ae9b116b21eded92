"""Handle SIGTERM: finish and keep the work in flight, begin nothing more, and end the run with one line."""

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
DRAIN_S = 240.0  # how long a run waits for work in flight; Kubernetes pods and services get five minutes


class Stoppable(Protocol):
    """Anything that can be told to stop."""

    def stop(self) -> None:
        """Begin nothing more."""


class Stop:
    """Whether the run was told to stop. A stream that is running drains; at any other time, the run ends at once."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._listening = False
        self._deferred = False
        self._cut_short = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM while the block runs; only in the main thread, since Python allows no handler in others."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_signal)
        self._listening = True
        try:
            with self.explained():
                yield
        finally:
            self._listening = False
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise StoppedError if the signal cut the block short, whatever error that caused in native code."""
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
        """Let the block finish after a first signal; `check` raises afterwards."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def draining(self, stages: Stoppable) -> Iterator[None]:
        """While the block runs, pass a signal on to the stages (their counter), which then begin nothing more."""
        over = threading.Event()
        thread = threading.Thread(target=self._pass_on, args=(stages, over), daemon=True)
        thread.start()
        try:
            with self.deferred():
                yield
        finally:
            over.set()
            thread.join(timeout=10)

    @property
    def asked(self) -> bool:
        """Whether the run was told to stop."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raise StoppedError if the run was told to stop."""
        if self._asked.is_set():
            raise StoppedError("stopped by SIGTERM; finished volumes are kept, and the next run goes on from there")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again = self._asked.is_set()
        self._asked.set()
        if again or not self._deferred:
            self._cut_short = True
            self.check()

    def _pass_on(self, stages: Stoppable, over: threading.Event) -> None:
        # Not in the signal handler: it may have interrupted Ray's own code.
        waited_s = 0.0
        while not over.wait(TELL_EVERY_S):
            if self._asked.is_set():
                stages.stop()  # repeatedly: the counter may have been restarted since
                waited_s += TELL_EVERY_S
                if waited_s > DRAIN_S:  # something hangs: end the run as a second signal would
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
