"""Show people how far a run is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medret.pipeline.counter import Counting, StageCount
from medret.terminal import Terminal

logger = logging.getLogger(__name__)

POLL_S = 0.5
PLAIN_EVERY_S = 15.0


class Reporter:
    """Tells how far the run is: a live bar on a terminal, a line now and then elsewhere.

    quiet: sends these lines to the log instead, and shows no progress. warns: print warnings all the same; by default,
    unless quiet. fields: what every line of the log carries, such as the run.
    """

    def __init__(self, *, quiet: bool = False, warns: bool | None = None) -> None:
        self.console = Terminal(stderr=True, quiet=quiet)
        self.quiet = quiet
        self.fields: dict[str, str] = {}
        self._warns = not quiet if warns is None else warns
        self._warnings = Terminal(stderr=True) if quiet else self.console  # which keeps a live bar below what it prints

    def say(self, text: str) -> None:
        """Print one line, or log it."""
        if self.quiet:
            logger.info("%s", text, extra=self.fields)
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print one line on something that went wrong and was put right, or log it."""
        if self._warns:
            self._warnings.print(text, markup=False, soft_wrap=True)
        else:
            logger.warning("%s", text, extra=self.fields)

    @contextmanager
    def watching(self, counts: Counting, volumes: int, watched: str) -> Iterator[None]:
        """Show the progress of stage `watched` of `volumes` volumes until the block ends."""
        stop = threading.Event()
        show = self._bar if self.console.is_terminal and not self.quiet else self._lines
        thread = threading.Thread(target=show, args=(counts, volumes, watched, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)

    def _bar(self, counts: Counting, volumes: int, watched: str, stop: threading.Event) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("volumes"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("embedding", total=volumes, rate="")
            started = time.monotonic()
            while not stop.wait(POLL_S):
                done = _poll(counts, watched)
                rate = f"{done.slices} slices, {done.slices / (time.monotonic() - started):.1f}/s"
                progress.update(task, completed=done.volumes, rate=rate)

    def _lines(self, counts: Counting, volumes: int, watched: str, stop: threading.Event) -> None:
        started = time.monotonic()
        while not stop.wait(PLAIN_EVERY_S):
            done, passed = _poll(counts, watched), time.monotonic() - started
            left = passed / done.volumes * (volumes - done.volumes) if done.volumes else float("nan")
            self.say(
                f"{done.volumes}/{volumes} volumes, {done.slices} slices, {done.slices / passed:.1f} slices/s, "
                + (f"about {left:.0f} s left" if done.volumes else "starting")
            )


def _poll(counts: Counting, watched: str) -> StageCount:
    return counts.stages().get(watched, StageCount())
