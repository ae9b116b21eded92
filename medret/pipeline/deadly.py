"""Volumes that kill or hang the process that reads them: found, and quarantined, without naming the innocent.

A killed task is repeated by Ray. When it begins again, it reads one volume at a time, and tells the counter before and
after each: one that was begun and never ended is what it died of. A volume of which it died DEATHS times is refused.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.counter import MOST_BEGINNINGS, Tally

DEATHS = 2  # alone; before that, the task died once with others
HANG_S = 900.0  # of fetching a group of objects, or of decoding one: a process that takes longer ends itself

Contents = Iterator[tuple[dict[str, Any], bytes | VolumeError]]


@contextmanager
def ended_if_hung() -> Iterator[None]:
    """End this process if the block takes longer than HANG_S; heard even where native code never comes back."""
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def surviving(
    rows: Sequence[dict[str, Any]], contents: Callable[[Sequence[dict[str, Any]]], Contents], tally: Tally
) -> Contents:
    """Each row with its object's bytes, or why it is refused. contents: gives those of several rows."""
    volumes = [row["volume_id"] for row in rows]
    if tally.begin(volumes, most=DEATHS * len(rows) + MOST_BEGINNINGS) == 1:
        yield from _watched(contents(rows))
    else:
        for row in rows:
            deaths, seconds = tally.open(row["volume_id"])
            if deaths >= DEATHS:
                yield row, _refusal(deaths, seconds)
            else:
                yield from _watched(contents([row]))
            tally.close(row["volume_id"])
    tally.done(volumes)


def _watched(found: Contents) -> Contents:
    while True:
        with ended_if_hung():
            each = next(found, None)
        if each is None:
            return
        yield each


def _refusal(deaths: int, seconds: float) -> VolumeError:
    if seconds >= HANG_S:
        reason = f"reading it did not end within {HANG_S:g} s, {deaths} times; see whether its store answers"
        return VolumeError(QuarantineCode.UNREADABLE, reason)
    reason = (
        f"the process that read it was killed, {deaths} times, as a machine does that runs out of memory; give workers "
        "more memory, or lower --max-volume-gib"
    )
    return VolumeError(QuarantineCode.TOO_LARGE, reason)
