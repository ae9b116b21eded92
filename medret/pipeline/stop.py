"""SIGTERM: what is in flight is finished and kept, nothing more is begun, and the run ends with one line."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medret.errors import StoppedError


class Stop:
    """Whether the run was told to stop. While a stream runs, it drains; at any other time, the run ends at once."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._draining = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM while the block runs. Elsewhere than in the main thread, Python allows no handler."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def draining(self, counter: Any) -> Iterator[None]:
        """While the block runs, a signal tells the stages (by way of their counter) to begin nothing more."""
        over = threading.Event()
        thread = threading.Thread(target=self._pass_on, args=(counter, over), daemon=True)
        thread.start()
        self._draining = True
        try:
            yield
        finally:
            self._draining = False
            over.set()
            thread.join(timeout=10)

    def check(self) -> None:
        """Raises StoppedError if the run was told to stop."""
        if self._asked.is_set():
            raise StoppedError("stopped by SIGTERM; finished volumes are kept, and the next run goes on from there")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again = self._asked.is_set()
        self._asked.set()
        if again or not self._draining:
            self.check()

    def _pass_on(self, counter: Any, over: threading.Event) -> None:
        # Not in the signal handler: it may have interrupted Ray's own code.
        while not over.wait(0.2):
            if self._asked.is_set():
                counter.stop.remote()
                return
