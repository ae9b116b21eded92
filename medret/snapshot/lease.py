"""One writer at a time: STORE/LEASE says who holds the store and until when.

    {"holder": "host, process 12, run 20260131T094500Z", "owner": "<random>", "process": "<machine and process>",
     "since": "2026-01-31T09:45:00Z", "expires": "2026-01-31T09:55:00Z"}

It is taken, renewed and given back by compare-and-swap, so two runs never both believe that they have it. A holder that
died lapses: at once where this machine can see that the process is no more, else when the lease expires. One that
would never expire, because its clock was wrong, is broken by hand: `medret unlock`. Readers never look at it.
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
CLOCKS_S = 3600.0  # by which the clocks of two machines may differ without a word
LONGEST_S = 86_400.0  # no lease runs longer: one that seems to was dated by a wrong clock
RENEWALS = 4  # within the time of one lease
Moment = Annotated[datetime, msgspec.Meta(tz=True)]  # one without a time zone cannot be compared with now


class Holder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What LEASE says. owner: random, of one taking. process: of the machine and process that hold it."""

    holder: str
    owner: str
    process: str
    since: Moment
    expires: Moment

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return msgspec.json.encode(self) + b"\n"

    @property
    def lapsed(self) -> bool:
        """Whether another may take the lease: it was given back, it expired, or its process is seen to be dead."""
        return self.expires <= datetime.now(UTC) or _is_dead(self.process)

    @property
    def misdated(self) -> bool:
        """Whether it ends later than any lease can: the clock of its holder or of this machine is wrong."""
        return self.expires > datetime.now(UTC) + timedelta(seconds=LONGEST_S + CLOCKS_S)

    @property
    def alive(self) -> bool:
        """Whether it looks as if someone still held it, as far as can be told from here."""
        return not self.lapsed and (_is_running(self.process) or not self.misdated)

    def ended(self) -> Holder:
        """The same, given back now."""
        return msgspec.structs.replace(self, expires=datetime.now(UTC))


class Lease:
    """A lease that this process holds. Call `check` before a step that must not happen twice."""

    def __init__(self, store: Location, holder: Holder, length: timedelta) -> None:
        self._store = store
        self._holder = holder
        self._length = length
        self._lost = False
        self._guard = threading.Lock()

    def check(self) -> None:
        """Raises BusyError unless the store says that the lease is still this run's, and runs."""
        with self._guard:
            if self._lost or _read(self._store) != self._holder.to_bytes():
                self._lost = True
                raise self._gone()
            if self._holder.expires > datetime.now(UTC):
                return
        self.renew()

    def renew(self) -> None:
        """Put off the expiry; raises BusyError when another run has taken the store."""
        with self._guard:
            later = msgspec.structs.replace(self._holder, expires=datetime.now(UTC) + self._length)
            if self._lost or not self._store.compare_and_swap(LEASE, self._holder.to_bytes(), later.to_bytes()):
                self._lost = True
                raise self._gone()
            self._holder = later

    def give_back(self) -> None:
        """Let the next run take the store at once."""
        with self._guard:
            if not self._lost:
                self._lost = True
                self._store.compare_and_swap(LEASE, self._holder.to_bytes(), self._holder.ended().to_bytes())

    def _gone(self) -> BusyError:
        return BusyError(
            f"{self._store.uri}: the lease of this run lapsed or was broken by `medret unlock`, and another run may "
            "have taken the store; nothing was published; run again when that run has ended"
        )


@contextmanager
def leased(store: Location, purpose: str, seconds: float = LEASE_S) -> Iterator[Lease]:
    """Hold the store while the block runs; raises BusyError naming who holds it.

    purpose: what for, such as `run 20260131T094500Z`. seconds: after which a holder that went silent is given up.
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
        except MedretError:  # the store is out of reach: the lease expires by itself
            lease._lost = True  # noqa: SLF001


def refuse_if_held(store: Location) -> None:
    """Raises BusyError if another run holds the store now; changes nothing."""
    _refuse(store, _read(store))


def unlock(store: Location, *, force: bool = False) -> tuple[Holder | None, bool]:
    """Break the lease of a holder that will not come back; returns who held it (None: nobody) and whether it ran.

    Raises BusyError, and changes nothing, if the holder looks alive and `force` is not set. A holder that is alive
    after all finds out when it checks, and publishes nothing.
    """
    data = _read(store)
    found = _parse(data)
    if found is None or found.lapsed:
        return found, False
    if found.alive and not force:
        raise BusyError(
            f"{_held_by(store, found)}, and looks alive; if you know that it is not, `medret unlock --force "
            f"{store.uri}` breaks its lease"
        )
    if not store.compare_and_swap(LEASE, data, found.ended().to_bytes()):
        raise BusyError(
            f"{store.uri}: the lease was renewed or taken just now, so its holder is alive; nothing was done"
        )
    return found, True


def take(store: Location, purpose: str, seconds: float) -> Lease:
    """Take the lease; raises BusyError naming who holds it, UsageError for one that is too long."""
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
    held = _read(store)
    _refuse(store, held)
    if not store.compare_and_swap(LEASE, held, mine.to_bytes()):
        winner = _parse(_read(store))
        raise _busy(store, winner) if winner else BusyError(f"{store.uri}: another run took the store just now")
    return Lease(store, mine, length)


def _keep(lease: Lease, every_s: float, stop: threading.Event) -> None:
    while not stop.wait(every_s):
        try:
            lease.renew()
        except BusyError:
            logger.error("lost the lease: another run may have taken the store")
            return  # the run finds out when it checks
        except MedretError as error:
            logger.warning("the lease could not be renewed, trying again: %s", error)
            continue  # out of reach for the moment; the next try may still be in time


def _read(store: Location) -> bytes | None:
    try:
        return store.read(LEASE)
    except FileNotFoundError:
        return None


def _parse(data: bytes | None) -> Holder | None:
    try:
        return msgspec.json.decode(data, type=Holder) if data else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # damaged: whoever comes next may take it


def _refuse(store: Location, data: bytes | None) -> None:
    """Raises BusyError if LEASE, which holds `data`, is somebody's."""
    found = _parse(data)
    if found is not None and not found.lapsed:
        raise _busy(store, found)


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
    """This boot of this machine and this process namespace: within it, a process id means one process."""
    parts = [socket.gethostname(), _text("/proc/sys/kernel/random/boot_id")]
    try:
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _process(pid: int) -> str | None:
    """Machine, process id and its start, which tells it from a later process of the same id; None if there is none."""
    status = _text(f"/proc/{pid}/stat")
    fields = status.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return f"{_machine()}:{pid}:{fields[19]}"


def _is_dead(process: str) -> bool:
    machine, _, rest = process.partition(":")
    if machine != _machine() or not rest:
        return False  # elsewhere: only time tells
    return not _is_running(process)


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
