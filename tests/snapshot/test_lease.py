"""One writer at a time."""

from __future__ import annotations

import os
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

from medret.errors import BusyError
from medret.snapshot.lease import LEASE, Holder, leased, take
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
    assert store.swap(LEASE, ours, elsewhere.to_bytes())
    with pytest.raises(BusyError):
        take(store, "early", 60)
    silent = replace(elsewhere, expires=datetime.now(UTC) - timedelta(seconds=1))
    assert store.swap(LEASE, elsewhere.to_bytes(), silent.to_bytes())
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
