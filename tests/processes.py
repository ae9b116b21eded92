"""Processes that a test has started, and theirs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def family(session: int) -> dict[int, str]:
    """Process id -> command line of what the leader of a session has started and still lives, in whatever session."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if fields[0] != "Z":
                    parents[int(entry.name)] = (int(fields[1]), int(fields[3]))
            except OSError:
                continue
    found: dict[int, str] = {}
    grew = True
    while grew:
        more = {p: names[p] for p, (up, sid) in parents.items() if p not in found and (sid == session or up in found)}
        grew = bool(more)
        found |= more
    return found


def reap(session: int) -> None:
    """End at once what the leader of a session has started, and itself, and wait until it is gone."""
    for _ in range(200):
        left = family(session)
        left.pop(os.getpid(), None)
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
