"""Atomic, content-addressed storage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medret.errors import CorruptError, StorageError, UsageError
from medret.storage import Location, normalise_uri, read_checked


def test_written_file_names_its_content(tmp_path: Path) -> None:
    store = Location(tmp_path / "store")
    written = store.write_named("a/b", "slices", ".parquet", b"content")
    assert written.path == f"a/b/slices-{hashlib.sha256(b'content').hexdigest()[:16]}.parquet"
    assert store.read(written.path) == b"content"
    assert read_checked(store, written.path, written.sha256) == b"content"
    assert store.files() == [written.path]


def test_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    store = Location(tmp_path)
    written = store.write_named("x", "rows", ".arrow", b"content")
    (tmp_path / written.path).write_bytes(b"contenu")
    with pytest.raises(CorruptError, match=written.path):
        read_checked(store, written.path, written.sha256)
    (tmp_path / written.path).unlink()
    with pytest.raises(CorruptError, match=r"rows-.*missing"):
        read_checked(store, written.path, written.sha256)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Location(tmp_path)
    store.write("CURRENT", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medret.storage.os.fsync", full)
    with pytest.raises(StorageError, match=r"CURRENT cannot be written.*No space"):
        store.write("CURRENT", b"new")
    assert store.read("CURRENT") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["CURRENT"]


def test_memory_filesystem_is_a_location() -> None:
    store = Location("memory://somewhere/store")
    store.write("snapshots/1/manifest.json", b"{}")
    assert store.files("snapshots") == ["snapshots/1/manifest.json"]
    assert store.exists("snapshots/1/manifest.json")
    assert not store.exists("CURRENT")
    assert not store.is_local
    assert store.files("absent") == []


@pytest.mark.parametrize(
    ("given", "expected"), [("s3://bucket/a/", "s3://bucket/a"), ("/a/b/", "/a/b"), ("file:///a/b", "/a/b")]
)
def test_uris_are_normalised(given: str, expected: str) -> None:
    assert normalise_uri(given) == expected


@pytest.mark.parametrize("wrong", ["", "nosuchscheme://x"])
def test_wrong_uris_are_usage_errors(wrong: str) -> None:
    with pytest.raises(UsageError):
        Location(wrong)
