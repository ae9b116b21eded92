"""Connecting to Ray, and what a Ray of this machine leaves behind: rows A12, A18, A20 and A24 of the faults."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from medret.errors import MedretError, StoppedError, UnreachableError
from medret.pipeline import connect
from medret.pipeline.connect import LOCK, guarded, local_folder, not_started, remove_leftovers, unreachable
from medret.storage.objects import default_cache_dir
from tests.processes import family, is_alive


def caused(error: Exception, cause: str) -> Exception:
    """As Ray raises what a cluster says to a wrong token."""
    error.__cause__ = RuntimeError(f"Failed to connect to GCS. Last connection error: Traceback\n{cause}\n")
    return error


@pytest.mark.parametrize(
    ("address", "error", "told"),
    [
        ("http://10.0.0.1:8265", ConnectionError(), "a driver needs HOST:PORT"),
        (
            "10.0.0.1:6379",
            caused(ConnectionError("Failed"), "InvalidAuthToken: Authentication token"),
            "RAY_AUTH_TOKEN",
        ),
        ("10.0.0.1:6379", TimeoutError(), "nothing answered within 60 s"),
        ("10.0.0.1:6379", RuntimeError("To fix this, either:\nno head found.\n"), "no head found; check that its head"),
    ],
)
def test_why_a_cluster_cannot_be_used_and_what_to_do_is_one_line(address: str, error: Exception, told: str) -> None:
    """A12: only the first line of Ray's text was told, and always the advice for a busy machine."""
    found = unreachable(address, error)
    assert isinstance(found, UnreachableError)
    assert str(found).startswith(f"the Ray cluster at RAY_ADDRESS={address} could not be reached: ")
    assert told in str(found)
    assert "less busy" not in str(found)
    assert "\n" not in str(found)


def test_only_what_took_too_long_is_to_be_tried_again() -> None:
    """A12"""
    assert "less busy" in str(not_started(TimeoutError("it did not answer within 240 s")))
    refused = str(not_started(RuntimeError('Traceback:\n  File "x", line 1\nPermissionError: /x')))
    assert "PermissionError: /x" in refused
    assert "less busy" not in refused


def test_a_cluster_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A24: the run tried for ever, and kept its lease."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: pytest.fail("what never was is not shut down"))
    monkeypatch.setattr(connect, "ANSWER_S", 0.2)
    never = threading.Event()
    monkeypatch.setattr(connect, "_join", lambda _: never.wait())
    with pytest.raises(UnreachableError, match=r"nothing answered within 0.2 s"), connect.connected():
        pytest.fail("connected to nothing")
    never.set()


def test_a_signal_is_heard_while_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A13: Ray's start could not be interrupted."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    never = threading.Event()

    def join(_: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        never.wait()

    monkeypatch.setattr(connect, "_join", join)

    def heard(*_: object) -> None:
        raise StoppedError("heard")

    before = signal.signal(signal.SIGTERM, heard)
    try:
        with pytest.raises(StoppedError, match="heard"), connect.connected():
            pytest.fail("connected to nothing")
    finally:
        signal.signal(signal.SIGTERM, before)
        never.set()


def test_a_folder_of_ray_is_private_and_goes_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A18, A20"""
    monkeypatch.setattr(connect, "_base", lambda: tmp_path)
    (tmp_path / "medret-mine").mkdir()  # a user's own
    with suppress(StoppedError), local_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        remove_leftovers(tmp_path)
        assert folder.exists()  # its run goes on
        raise StoppedError
    assert not folder.exists()
    with suppress(ZeroDivisionError), local_folder() as folder:
        (folder / "r" / "session" / "logs").mkdir(parents=True)
        raise ZeroDivisionError
    assert folder.exists()  # its logs may be wanted
    with local_folder() as later:
        assert not folder.exists()
        with (later / LOCK).open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [path.name for path in tmp_path.iterdir()] == ["medret-mine"]


def test_a_temporary_folder_too_long_for_sockets_is_refused_only_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A12: Ray failed on names of sockets over 107 bytes, and told to wait for a less busy machine."""
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert connect._base() == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(MedretError, match=r"RAY_TMPDIR=.* has \d+ bytes.*107.*at most \d+ bytes"):
        connect._base()


def test_nothing_of_ray_outlives_its_driver(tmp_path: Path) -> None:
    """A18: Ray's agents stayed for 12 s and more after a driver that was killed."""
    driver = """
import subprocess, time
from medret.pipeline.connect import guarded
import medret.pipeline.connect as local
with guarded() as group:
    local._group = group
    subprocess.Popen(["sleep", "1000"], preexec_fn=lambda: None)
    local._group = None
    print(group, flush=True)
    time.sleep(1000)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    group = int(process.stdout.readline())
    sleeper = next(pid for pid, name in family(process.pid).items() if name.startswith("sleep"))
    assert os.getpgid(sleeper) == group != os.getpgid(process.pid)  # a signal to the run's group does not reach it
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while is_alive(sleeper) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(sleeper)


def test_the_guard_ends_with_its_block() -> None:
    """A18"""
    with guarded() as group:
        assert os.getpgid(group) == group
    assert not Path(f"/proc/{group}").exists()


def test_without_a_home_the_variable_that_helps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A12: a traceback."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MEDRET_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(MedretError, match=r"no home folder .* set MEDRET_CACHE"):
        default_cache_dir()
