"""Whatever lies in a folder: listed, or skipped by a rule that is counted; never an error, never a wait."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medret.archive import list_archive
from medret.cli import main
from medret.errors import NotFoundError, StorageError, UsageError
from medret.storage import objects as local_files


def refusing(monkeypatch: pytest.MonkeyPatch, code: int, *names: str) -> None:
    """Folders of these names fail when they are entered (root may enter all)."""
    scandir: Callable[[str], Any] = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name in names:
            raise OSError(code, os.strerror(code), path)
        return scandir(path)

    monkeypatch.setattr("medret.archive.listing.os.scandir", refuse)


@pytest.fixture
def oddities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one good volume, and with what disks gather over the years."""
    archive = tmp_path / "archive"
    for folder in ("lost+found", ".Trash-0", "good"):
        (archive / folder).mkdir(parents=True)
        (archive / folder / "a.nii").write_bytes(b"a")
    latin, japanese = (
        archive / os.fsdecode(name) for name in ("Müller.nii".encode("latin-1"), "患者".encode("shift-jis"))
    )
    latin.write_bytes(b"b")
    japanese.mkdir()
    for name in ("b.nii", "notes.txt"):
        (japanese / name).write_bytes(b"b")
    (archive / "self.nii").symlink_to("self.nii")
    (archive / "one.nii").symlink_to("two.nii")
    (archive / "two.nii").symlink_to("one.nii")
    (archive / "long.nii").symlink_to("x" * 300)
    (archive / "nowhere.nii").symlink_to("absent")
    (archive / "up").symlink_to(archive)
    (archive / "loop").symlink_to("loop")
    os.mkfifo(archive / "fifo.nii")
    os.mkfifo(archive / "fifo")
    (archive / "zero.nii.gz").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(archive)  # a socket's path is short
        listener.bind("socket.nii")
    return archive


def test_one_odd_thing_stops_nothing(
    oddities: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A2: the good volume is listed, links that lead nowhere are to be said when they are read, all else has a rule."""
    refusing(monkeypatch, errno.EACCES, "lost+found", ".Trash-0")
    listing = list_archive(str(oddities))
    ids = listing.objects["volume_id"].to_pylist()
    assert ids == ["good/a.nii", "long.nii", "nowhere.nii", "one.nii", "self.nii", "two.nii"]
    assert listing.skipped == {
        "hidden": 1, "no_access": 1, "not_a_volume": 2, "not_a_file": 4, "not_text_name": 2,
    }  # fmt: skip
    assert listing.surprises["not_text_name"] == (r"M\xfcller.nii", r"\x8a\xb3\x8e\xd2/b.nii")
    assert listing.surprises["no_access"] == ("lost+found",)
    assert pa.array(ids, pa.string()).to_pylist() == ids
    assert main(["plan", str(oddities), str(tmp_path / "store"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == dict(listing.skipped)


def test_a_folder_that_breaks_is_no_archive_that_shrank(oddities: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A2, A5: unless a rule hides it."""
    with monkeypatch.context() as patch:
        refusing(patch, errno.EIO, "good")
        with pytest.raises(StorageError, match=r"cannot be listed: .*Input/output error"):
            list_archive(str(oddities))
    refusing(monkeypatch, errno.EIO, ".Trash-0")
    assert list_archive(str(oddities)).skipped["hidden"] == 1


def test_an_archive_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B9: exit code 1; one that is not there, or is no archive, 2."""
    refusing(monkeypatch, errno.EACCES, tmp_path.name)
    with pytest.raises(StorageError, match="Permission denied"):
        list_archive(str(tmp_path))
    with pytest.raises(NotFoundError):
        list_archive(str(tmp_path / "absent"))
    os.mkfifo(tmp_path / "x.nii")
    with pytest.raises(UsageError, match="neither a folder nor a file"):
        list_archive(str(tmp_path / "x.nii"))


def test_a_folder_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A21."""
    read_end, write_end = os.pipe()
    monkeypatch.setattr(local_files, "STALL_S", 0.2)
    monkeypatch.setattr("medret.archive.listing.os.scandir", lambda _: os.read(read_end, 1))
    with pytest.raises(StorageError, match=r"cannot be listed: .*does its mount still answer"):
        list_archive(str(tmp_path))
    os.write(write_end, b"x")
