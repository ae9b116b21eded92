"""Processes that a test has started, and theirs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def family(session: int) -> dict[int, str]:
    """Process id -> command line of what the leader of a session has started and still lives, in whatever session."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    parents[int(entry.name)] = (int(fields[1]), int(fields[3]))
    found: set[int] = set()
    grew = True
    while grew:
        more = {pid for pid, (up, sid) in parents.items() if pid not in found and (sid == session or up in found)}
        grew = bool(more)
        found |= more
    names = {}
    for pid in found:
        with suppress(OSError):
            names[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return names


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked after is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def open_to_others(pids: Iterable[int]) -> list[str]:
    """Addresses other than loopback, in the kernel's hexadecimal, at which processes accept connections."""
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    listening = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1].partition(":")[0] not in loopback:
                listening[f"socket:[{fields[9]}]"] = fields[1]
    found = []
    for pid in pids:
        with suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    found += [listening[name] for name in [str(handle.readlink())] if name in listening]
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
