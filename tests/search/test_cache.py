from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import fsspec
import pytest

from medret.errors import CorruptError, MedretError
from medret.search import cache
from medret.search.cache import LocalFiles
from medret.storage import Location
from medret.storage.objects import default_cache_dir

CONTENT = b"synthetic index file"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, in order."""
    calls: list[Path] = []
    original = cache._sha256

    def counted(path: Path) -> str:
        calls.append(path)
        return original(path)

    monkeypatch.setattr(cache, "_sha256", counted)
    return calls


def test_local_file_is_used_in_place_and_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    (tmp_path / "store").mkdir()
    file = tmp_path / "store" / "exact-0.faiss"
    file.write_bytes(CONTENT)
    for _ in range(3):  # as three processes would
        assert LocalFiles(Location(tmp_path / "store"), tmp_path / "c").path("exact-0.faiss", SHA256) == file
    assert hashed == [file]


def test_changed_file_is_hashed_again_and_named(tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "exact-0.faiss"
    file.write_bytes(CONTENT)
    local = LocalFiles(Location(tmp_path), tmp_path / "c")
    local.path("exact-0.faiss", SHA256)
    before = file.stat()
    file.write_bytes(CONTENT.replace(b"index", b"indeX"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and modification time
    with pytest.raises(CorruptError, match=r"exact-0\.faiss is damaged: sha256 is .*, expected " + SHA256[:16]):
        local.path("exact-0.faiss", SHA256)
    assert len(hashed) == 2


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"gone\.faiss is missing"):
        LocalFiles(Location(tmp_path), tmp_path / "c").path("gone.faiss", SHA256)


def test_a_cache_that_cannot_be_written_is_no_obstacle_to_a_local_store(tmp_path: Path, hashed: list[Path]) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    local = LocalFiles(Location(tmp_path), tmp_path / "f" / "cache")
    for _ in range(2):
        local.path("f", SHA256)
    assert len(hashed) == 2


@pytest.fixture
def remote() -> Location:
    store = Location(f"memory://synthetic-{uuid.uuid4().hex}")
    store.write("indices/f", CONTENT)
    return store


def test_remote_file_is_copied_once_and_checked(tmp_path: Path, remote: Location) -> None:
    copy = LocalFiles(remote, tmp_path).path("indices/f", SHA256)
    assert copy == tmp_path / "files" / SHA256
    assert copy.read_bytes() == CONTENT
    fsspec.filesystem("memory").rm(remote.path("indices/f"))
    assert LocalFiles(remote, tmp_path).path("indices/f", SHA256) == copy
    assert [path.name for path in (tmp_path / "files").iterdir()] == [SHA256]


def test_damaged_copy_is_fetched_again(tmp_path: Path, remote: Location) -> None:
    copy = LocalFiles(remote, tmp_path).path("indices/f", SHA256)
    copy.write_bytes(b"rotten")
    assert LocalFiles(remote, tmp_path).path("indices/f", SHA256).read_bytes() == CONTENT


def test_damaged_remote_file_is_named_and_not_kept(tmp_path: Path, remote: Location) -> None:
    remote.write("indices/f", b"rotten")
    with pytest.raises(CorruptError, match=r"memory://.*/indices/f is damaged"):
        LocalFiles(remote, tmp_path).path("indices/f", SHA256)
    assert not list((tmp_path / "files").iterdir())


def test_missing_remote_file_is_named(tmp_path: Path, remote: Location) -> None:
    with pytest.raises(CorruptError, match="indices/g is missing"):
        LocalFiles(remote, tmp_path).path("indices/g", SHA256)


def test_a_remote_store_needs_a_cache(tmp_path: Path, remote: Location) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MedretError, match="MEDRET_CACHE"):
        LocalFiles(remote, tmp_path / "file").path("indices/f", SHA256)


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("MEDRET_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "medret"


def test_copies_of_a_protected_store_are_this_users_alone(tmp_path: Path, remote: Location) -> None:
    """B15: folders were 0755 and files 0644; an old folder is closed too."""
    folder = tmp_path / "cache"
    (folder / "files").mkdir(parents=True)
    (folder / "files").chmod(0o755)
    LocalFiles(remote, folder).path("indices/f", SHA256)
    made = {path.relative_to(folder).parts[0]: path for path in folder.rglob("*") if path.is_file()}
    assert made.keys() == {"files", "checked"}
    for path in made.values():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_cannot_be_looked_at(tmp_path: Path, hashed: list[Path], remote: Location) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    unlookable = tmp_path / ("c" * 300)
    assert LocalFiles(Location(tmp_path), unlookable).path("f", SHA256) == tmp_path / "f"
    with pytest.raises(MedretError, match="MEDRET_CACHE"):
        LocalFiles(remote, unlookable).path("indices/f", SHA256)
    with pytest.raises(MedretError, match="MEDRET_CACHE"):
        LocalFiles(remote, unlookable).derived("0" * 64, lambda path: None)
