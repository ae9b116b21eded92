"""One writer at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from medret.cli import main
from medret.errors import BusyError, UsageError
from medret.snapshot import lease as leases
from medret.snapshot.lease import LEASE, Holder, Lease, leased, take
from medret.storage import Location


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return Location(tmp_path / "store")
    make: Callable[[str], str] = request.getfixturevalue("s3")
    return Location(f"{make('lease')}/store")


def holder_of(store: Location) -> str:
    return msgspec.json.decode(store.read(LEASE), type=Holder).holder


def test_a_second_holder_is_told_who_has_the_store(store: Location) -> None:
    with leased(store, "run one"), pytest.raises(BusyError, match=rf"process {os.getpid()}, run one, since 20.*lapses"):
        take(store, "run two", 60)
    with leased(store, "run two"):
        pass  # given back, so it can be taken at once


def test_of_many_at_once_one_gets_it(store: Location) -> None:
    won: list[int] = []
    start = threading.Barrier(6)

    def attempt(number: int) -> None:
        start.wait()
        try:
            take(store, f"run {number}", 60)
            won.append(number)
        except BusyError:
            pass

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_lease_is_renewed_while_it_is_held(store: Location) -> None:
    with leased(store, "run", seconds=1.2) as lease:
        time.sleep(2)
        with pytest.raises(BusyError):
            take(store, "another", 60)
        lease.check()


def test_a_silent_holder_elsewhere_lapses_and_finds_out(store: Location) -> None:
    lease = take(store, "run", 600)
    ours = store.read(LEASE)
    elsewhere = replace(msgspec.json.decode(ours, type=Holder), process="another-machine:1:1")
    assert store.compare_and_swap(LEASE, ours, elsewhere.to_bytes())
    with pytest.raises(BusyError):
        take(store, "early", 60)
    silent = replace(elsewhere, expires=datetime.now(UTC) - timedelta(seconds=1))
    assert store.compare_and_swap(LEASE, elsewhere.to_bytes(), silent.to_bytes())
    take(store, "heir", 60)
    assert "heir" in holder_of(store)
    with pytest.raises(BusyError, match="lapsed"):
        lease.renew()


def test_a_dead_process_of_this_machine_lapses_at_once(tmp_path: Path) -> None:
    lines = (
        "from medret.snapshot.lease import take",
        "from medret.storage import Location",
        f"take(Location({str(tmp_path)!r}), 'dies', 600)",
    )
    subprocess.run([sys.executable, "-c", "; ".join(lines)], check=True)
    assert "dies" in holder_of(Location(tmp_path))
    take(Location(tmp_path), "heir", 60)
    assert "heir" in holder_of(Location(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"{}",
        lambda whole: whole[:20],
        lambda whole: b"\0" * len(whole),
        lambda whole: whole.replace(b'"holder":"', b'"holder":"\xff'),  # no UTF-8
        lambda whole: whole.replace(b'Z"', b'"'),  # times without a zone
    ],
)
def test_a_damaged_lease_stops_nobody(store: Location, damage: Callable[[bytes], bytes]) -> None:
    take(store, "before", 60)
    whole = store.read(LEASE)
    assert damage(whole) != whole
    store.write(LEASE, damage(whole))
    take(store, "run", 60)
    assert "run" in holder_of(store)


def test_a_lease_taken_between_judging_and_swapping_is_never_taken_over(
    store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B3: another takes the store right after the lapsed lease was read, before it is swapped."""
    take(store, "before", 60).give_back()
    read, swap = Location.read, Location.compare_and_swap

    def meanwhile(name: str, whole: Callable[..., object]) -> Callable[..., object]:
        def then(self: Location, *arguments: object) -> object:
            if name == "compare_and_swap":  # the moment between the last reading and the writing
                monkeypatch.undo()
                winners.append(take(self, "faster", 60))
                return whole(self, *arguments)
            found = whole(self, *arguments)  # the moment after the first reading
            monkeypatch.undo()
            winners.append(take(self, "faster", 60))
            return found

        return then

    for name, whole in (("read", read), ("compare_and_swap", swap)):
        winners: list[Lease] = []
        monkeypatch.setattr(Location, name, meanwhile(name, whole))
        with pytest.raises(BusyError, match="faster"):
            take(store, "slower", 60)
        winners[0].check()  # it holds the store still
        winners[0].give_back()


def test_a_check_asks_the_store(store: Location) -> None:
    """A22: whoever lost the store finds out at the next check, whatever the own clock says."""
    lease = take(store, "run", 600)
    lease.check()
    store.write(LEASE, b"{}")
    with pytest.raises(BusyError, match="may have taken the store"):
        lease.check()
    assert store.read(LEASE) == b"{}"


def test_a_lease_of_a_clock_that_was_ahead_is_said_and_can_be_broken(
    store: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    """A22."""
    elsewhere = Holder("far away, process 1, run x", "0" * 16, "another:1:1", *[datetime(2099, 1, 1, tzinfo=UTC)] * 2)
    store.write(LEASE, elsewhere.to_bytes())
    with pytest.raises(BusyError, match=rf"far away.*2099.*a clock.*medret unlock {re.escape(store.uri)}"):
        take(store, "run", 60)
    assert main(["unlock", store.uri]) == 0
    assert "broke the lease of far away, process 1, run x" in capsys.readouterr().out
    take(store, "heir", 60).give_back()
    assert main(["unlock", store.uri]) == 0
    assert "nobody holds it; the last holder was" in capsys.readouterr().out


def test_a_lease_that_looks_alive_is_broken_by_force_alone(store: Location, capsys: pytest.CaptureFixture[str]) -> None:
    """A22: also one whose clock is ahead, if its process runs here."""
    lease = take(store, "run", 600)
    ours = msgspec.json.decode(store.read(LEASE), type=Holder)
    for holder in (ours, replace(ours, expires=datetime(2099, 1, 1, tzinfo=UTC)), replace(ours, process="else:1:1")):
        store.write(LEASE, holder.to_bytes())
        assert main(["unlock", store.uri]) == 5
        assert "unlock --force" in capsys.readouterr().err
        assert store.read(LEASE) == holder.to_bytes()
        assert main(["unlock", store.uri, "--force"]) == 0
    with pytest.raises(BusyError):
        lease.check()
    with pytest.raises(UsageError, match="too long"):
        take(store, "for ever", 1e9)


def test_a_process_that_proc_does_not_show_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = leases._text
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    machine = leases._machine()
    assert leases._is_dead(f"{machine}:{os.getpid()}:1")  # an earlier process of this number
    monkeypatch.setattr(leases, "_text", lambda path: "" if path.endswith("/stat") else shown(path))
    assert not leases._is_dead(f"{machine}:{os.getpid()}:1")
    assert leases._is_dead(f"{machine}:{ended.pid}:1")
