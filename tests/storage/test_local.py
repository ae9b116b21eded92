"""Files of disks and mounts: nothing that lies there can hold a run up."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from medret.storage import Location, StoredObject, read_uri
from medret.storage import objects as local_files
from medret.storage.objects import StalledError, read_file, with_stall_limit


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A2, A21: a FIFO that nobody writes into, a socket, a device and a link to one are refused at once."""
    os.mkfifo(tmp_path / "fifo.nii")
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        for name in ("fifo.nii", "zero.nii", "s"):
            with pytest.raises(OSError, match=r"not a regular file|No such device"):
                read_file(str(tmp_path / name))
            with pytest.raises(OSError, match=r"not a regular file|No such device"):
                StoredObject(str(tmp_path / name)).sha256()


def test_parts_and_wholes(tmp_path: Path) -> None:
    path = tmp_path / "a b+c%20d[1]*?.nii"
    path.write_bytes(bytes(range(200)))
    assert read_uri(str(path)) == read_uri(f"file://{path}") == path.read_bytes()
    thing = StoredObject(str(path))
    assert thing.read(10, 20) == bytes(range(10, 20))
    assert thing.read(190, 999) == bytes(range(190, 200))
    assert thing.identity().size_bytes == 200


def test_a_read_that_hangs_is_given_up_and_the_next_sooner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A21."""
    monkeypatch.setattr(local_files, "STALL_S", 0.2)
    monkeypatch.setattr(local_files, "STALL_AGAIN_S", 0.1)
    answer = threading.Event()
    with pytest.raises(StalledError, match=r"for 0\.2 s; does its mount still answer\?: '/mnt/a'"):
        with_stall_limit(lambda _: answer.wait(30), "/mnt/a")
    with pytest.raises(StalledError, match=r"for 0\.1 s"):
        with_stall_limit(lambda _: answer.wait(30), "/mnt/b")
    answer.set()
    while local_files._waiting:
        answer.wait(0.01)
    (tmp_path / "x").write_bytes(b"1")
    assert Location(tmp_path).read("x") == b"1"


def test_a_slow_read_that_gets_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A21."""
    monkeypatch.setattr(local_files, "STALL_S", 0.3)

    def slow(beat: local_files.Beat) -> str:
        for _ in range(4):
            threading.Event().wait(0.1)
            beat()
        return "done"

    assert with_stall_limit(slow, "x") == "done"
