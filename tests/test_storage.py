"""Atomic, content-addressed storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medret.errors import CorruptError, NotFoundError, StorageError, UsageError
from medret.storage import Location, StoredObject, normalise_uri, read_checked
from tests.failing_s3 import FailingProxy


def test_written_file_names_its_content(tmp_path: Path) -> None:
    store = Location(tmp_path / "store")
    written = store.write_content_addressed("a/b", "slices", ".parquet", b"content")
    assert written.path == f"a/b/slices-{hashlib.sha256(b'content').hexdigest()[:16]}.parquet"
    assert store.read(written.path) == b"content"
    assert read_checked(store, written.path, written.sha256) == b"content"
    assert store.files() == [written.path]


def test_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    store = Location(tmp_path)
    written = store.write_content_addressed("x", "rows", ".arrow", b"content")
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

    monkeypatch.setattr("medret.storage.objects.os.fsync", full)
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


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def swapped(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return Location(tmp_path / "store")
    if request.param == "memory":
        return Location(f"memory://{tmp_path.name}/swap")
    make: Callable[[str], str] = request.getfixturevalue("s3")
    return Location(f"{make('swap')}/store")


def test_a_swap_writes_only_over_what_was_expected(swapped: Location) -> None:
    assert swapped.compare_and_swap("A", None, b"1")
    assert not swapped.compare_and_swap("A", None, b"2")
    assert not swapped.compare_and_swap("A", b"0", b"2")
    assert not swapped.compare_and_swap("B", b"1", b"2")
    assert swapped.compare_and_swap("A", b"1", b"2")
    assert swapped.read("A") == b"2"
    assert swapped.files() == ["A"]
    swapped.delete("A")
    swapped.delete("A")
    assert swapped.files() == []


@pytest.mark.s3
def test_of_many_swaps_at_once_one_wins(s3: Callable[[str], str], tmp_path: Path) -> None:
    for store in (Location(f"{s3('swap')}/store"), Location(tmp_path)):
        store.write("CURRENT", b"old")
        with ThreadPoolExecutor(8) as pool:
            done = list(
                pool.map(lambda n, at=store: at.compare_and_swap("CURRENT", b"old", f"new{n}".encode()), range(8))
            )
        assert done.count(True) == 1
        assert store.read("CURRENT") == f"new{done.index(True)}".encode()


def test_deleting_the_last_file_of_a_folder_removes_the_folder(tmp_path: Path) -> None:
    store = Location(tmp_path / "store")
    store.write("a/b/one", b"")
    store.write("a/two", b"")
    store.delete("a/b/one")
    assert not (tmp_path / "store" / "a" / "b").exists()
    assert store.files() == ["a/two"]


@pytest.mark.s3
@pytest.mark.parametrize("ignored", ["if-match", "if-none-match"])
def test_a_server_that_ignores_conditions_is_refused(
    s3: Callable[[str], str], s3_proxy: FailingProxy, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    """B13."""
    store = Location(f"{s3('unconditional')}/store")
    with monkeypatch.context() as patch:
        patch.setattr(s3_proxy, "ignored", frozenset({ignored}))
        for _ in range(2):
            with pytest.raises(StorageError, match=f"(?i)the server ignores {ignored} when writing"):
                store.compare_and_swap("LEASE", None, b"mine")
        assert store.details() == {}
    assert store.compare_and_swap("LEASE", None, b"mine")
    assert json.loads(store.read("CONDITIONAL"))["root"] == store.root
    asked = s3_proxy.passed
    assert store.compare_and_swap("LEASE", b"mine", b"later")
    assert s3_proxy.passed - asked <= 6  # not probed again: the answer, tag and bytes of the lease, and one write


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_named(s3_server: str) -> None:
    """B9."""
    with pytest.raises(NotFoundError, match="s3://no-such-bucket/store cannot be written to"):
        Location("s3://no-such-bucket/store").compare_and_swap("LEASE", None, b"mine")


def test_what_exists_of_a_range_is_read(swapped: Location) -> None:
    for data in (b"", b"0123456789"):
        swapped.write("x", data)
        for start, end in ((0, 4), (0, 99), (8, 99), (10, 12)):
            assert StoredObject(swapped.uri_of("x")).read(start, end) == data[start:end]
    swapped.write("x", b"")
    assert swapped.read("x", 10) == b""
