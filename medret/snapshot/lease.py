"""Allow one writer at a time: STORE/LEASE says who holds the store and until when.

    {"holder": "host, process 12, run 20260131T094500Z", "owner": "<random>", "process": "<machine and process>",
     "since": "2026-01-31T09:45:00Z", "expires": "2026-01-31T09:55:00Z"}

A run takes, renews and returns the lease by compare-and-swap, so two runs never both believe that they hold it. When a
holder dies, its lease lapses: at once if this machine can see that the process has ended, otherwise when it expires. A
lease that would never expire, because a clock was wrong, is broken by hand with `medret unlock`. Readers ignore LEASE.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from medret.errors import BusyError, MedretError, UsageError
from medret.storage import Location

logger = logging.getLogger(__name__)

LEASE = "LEASE"
LEASE_S = 600.0
CLOCKS_S = 3600.0  # clocks of two machines may differ by this much
LONGEST_S = 86_400.0  # no lease runs longer; if one seems to, a clock was wrong
RENEWALS = 4  # per lease length
Moment = Annotated[datetime, msgspec.Meta(tz=True)]  # without a time zone it could not be compared with now


class Holder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of LEASE. owner: random, per taking of the lease. process: machine and process that hold it."""

    holder: str
    owner: str
    process: str
    since: Moment
    expires: Moment

    def to_bytes(self) -> bytes:
        """Encode the lease as the bytes of the file."""
        return msgspec.json.encode(self) + b"\n"

    @property
    def lapsed(self) -> bool:
        """Whether another run may take the lease: it was returned, it expired, or its process is known to be dead."""
        return self.expires <= datetime.now(UTC) or _is_dead(self.process)

    @property
    def misdated(self) -> bool:
        """Whether it expires later than any lease can, so the clock of its holder or of this machine is wrong."""
        return self.expires > datetime.now(UTC) + timedelta(seconds=LONGEST_S + CLOCKS_S)

    @property
    def alive(self) -> bool:
        """Whether the holder still seems to run, as far as this machine can tell."""
        return not self.lapsed and (_is_running(self.process) or not self.misdated)

    def ended(self) -> Holder:
        """Return the same lease, expiring now."""
        return msgspec.structs.replace(self, expires=datetime.now(UTC))


class Lease:
    """A lease that this process holds. Call `check` before a step that only one run may take."""

    def __init__(self, store: Location, holder: Holder, length: timedelta) -> None:
        self._store = store
        self._holder = holder
        self._length = length
        self._lost = False
        self._guard = threading.Lock()

    def check(self) -> None:
        """Raise BusyError unless the lease in the store is still this run's; renew it if it has expired."""
        with self._guard:
            if self._lost or _read(self._store) != self._holder.to_bytes():
                self._lost = True
                raise self._lost_error()
            if self._holder.expires > datetime.now(UTC):
                return
        self.renew()

    def renew(self) -> None:
        """Move the expiry into the future; raise BusyError if another run has taken the store."""
        with self._guard:
            later = msgspec.structs.replace(self._holder, expires=datetime.now(UTC) + self._length)
            if self._lost or not self._store.compare_and_swap(LEASE, self._holder.to_bytes(), later.to_bytes()):
                self._lost = True
                raise self._lost_error()
            self._holder = later

    def give_back(self) -> None:
        """Return the lease, so that the next run can take it at once."""
        with self._guard:
            if not self._lost:
                self._lost = True
                self._store.compare_and_swap(LEASE, self._holder.to_bytes(), self._holder.ended().to_bytes())

    def _lost_error(self) -> BusyError:
        return BusyError(
            f"{self._store.uri}: the lease of this run lapsed or was broken by `medret unlock`, and another run may "
            "have taken the store; nothing was published; run again when that run has ended"
        )


@contextmanager
def leased(store: Location, purpose: str, seconds: float = LEASE_S) -> Iterator[Lease]:
    """Hold the store while the block runs; raise BusyError, naming the holder, if another run holds it.

    purpose: such as `run 20260131T094500Z`. seconds: after which the lease of a holder that no longer renews it lapses.
    """
    lease = take(store, purpose, seconds)
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=(lease, seconds / RENEWALS, stop), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join(timeout=30)
        try:
            lease.give_back()
        except MedretError:  # the store cannot be reached: the lease will expire
            lease._lost = True  # noqa: SLF001


def refuse_if_held(store: Location) -> None:
    """Raise BusyError if another run holds the store now; change nothing."""
    _refuse(store, _read(store))


def unlock(store: Location, *, force: bool = False) -> tuple[Holder | None, bool]:
    """Break the lease of a holder that died; return the holder (None if there was none) and whether a lease was broken.

    Raises BusyError, and changes nothing, if the holder seems to run and `force` is not set. If it runs after all, it
    notices at its next check and publishes nothing.
    """
    data = _read(store)
    holder = _parse(data)
    if holder is None or holder.lapsed:
        return holder, False
    if holder.alive and not force:
        raise BusyError(
            f"{_held_by(store, holder)}, and looks alive; if you know that it is not, `medret unlock --force "
            f"{store.uri}` breaks its lease"
        )
    if not store.compare_and_swap(LEASE, data, holder.ended().to_bytes()):
        raise BusyError(
            f"{store.uri}: the lease was renewed or taken just now, so its holder is alive; nothing was changed"
        )
    return holder, True


def take(store: Location, purpose: str, seconds: float) -> Lease:
    """Take the lease; raise BusyError, naming the holder, if another run has it, and UsageError if it is too long."""
    if seconds > LONGEST_S:
        raise UsageError(f"a lease of {seconds:g} s is too long: it may run for {LONGEST_S:g} s at most")
    now = datetime.now(UTC)
    length = timedelta(seconds=seconds)
    mine = Holder(
        holder=f"{socket.gethostname()}, process {os.getpid()}, {purpose}",
        owner=secrets.token_hex(8),
        process=_process(os.getpid()) or "",
        since=now,
        expires=now + length,
    )
    before = _read(store)
    _refuse(store, before)
    if not store.compare_and_swap(LEASE, before, mine.to_bytes()):
        winner = _parse(_read(store))
        raise _busy(store, winner) if winner else BusyError(f"{store.uri}: another run took the store just now")
    return Lease(store, mine, length)


def _keep(lease: Lease, every_s: float, stop: threading.Event) -> None:
    while not stop.wait(every_s):
        try:
            lease.renew()
        except BusyError:
            logger.error("lost the lease: another run may have taken the store")
            return  # the run notices at its next check
        except MedretError as error:
            logger.warning("the lease could not be renewed, trying again: %s", error)
            continue  # the next attempt may still be in time


def _read(store: Location) -> bytes | None:
    try:
        return store.read(LEASE)
    except FileNotFoundError:
        return None


def _parse(data: bytes | None) -> Holder | None:
    try:
        return msgspec.json.decode(data, type=Holder) if data else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # damaged: any run may take it


def _refuse(store: Location, data: bytes | None) -> None:
    """Raise BusyError if `data`, the bytes of LEASE, is a lease that has not lapsed."""
    holder = _parse(data)
    if holder is not None and not holder.lapsed:
        raise _busy(store, holder)


def _busy(store: Location, holder: Holder) -> BusyError:
    until = f"{holder.expires:%Y-%m-%d %H:%M:%S} UTC"
    if holder.misdated:
        cure = f"Its lease runs until {until}, later than any lease can: a clock is or was wrong. If it died,"
    else:
        cure = f"Wait for it to end. If it died, its lease lapses at {until}, or"
    return BusyError(f"{_held_by(store, holder)}. {cure} `medret unlock {store.uri}` breaks it")


def _held_by(store: Location, holder: Holder) -> str:
    return f"{store.uri} is held by {holder.holder}, since {holder.since:%Y-%m-%d %H:%M:%S} UTC"


def _machine() -> str:
    """Identify this boot of this machine and this process namespace, in which process ids are unique."""
    parts = [socket.gethostname(), _text("/proc/sys/kernel/random/boot_id")]
    try:
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _process(pid: int) -> str | None:
    """Return machine, process id and start time (a later process may have the same id); None if it does not run."""
    status = _text(f"/proc/{pid}/stat")
    fields = status.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return f"{_machine()}:{pid}:{fields[19]}"


def _is_dead(process: str) -> bool:
    machine, _, rest = process.partition(":")
    if machine != _machine() or not rest:
        return False  # on another machine: only the expiry tells
    pid = rest.partition(":")[0]
    return not _is_running(process) and not (pid.isdecimal() and _is_hidden(int(pid)))


def _is_hidden(pid: int) -> bool:
    """Whether a process runs of which /proc says nothing: that of another user may not be shown."""
    if _text(f"/proc/{pid}/stat"):
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _is_running(process: str) -> bool:
    """Whether this machine sees the process."""
    machine, _, rest = process.partition(":")
    pid = rest.partition(":")[0]
    return machine == _machine() and pid.isdecimal() and _process(int(pid)) == process


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
