"""Listing an archive: ids, rules, stores."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medret.archive import Listing, list_archive
from medret.errors import UnreachableError, UsageError
from medret.storage import Identity, identity_of


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def ids(listing: Listing) -> list[str]:
    return listing.objects["volume_id"].to_pylist()  # type: ignore[no-any-return]


MIXED = (
    "b/2.nii.gz",
    "a.nii",
    "b/1.NII.GZ",
    "._a.nii",
    ".cache/x.nii.gz",
    "b/.hidden/x.nii",
    "imagesTr/c.nii.gz",
    "labelsTr/c.nii.gz",
    "labelsTs/c.nii.gz",
    "b/Masks/2.nii.gz",
    "case/segmentations/liver.nii.gz",
    "notes.txt",
    "dataset.json",
    "b/table.csv",
    "b/nii",
)


def test_volumes_are_sorted_and_the_rest_is_counted(tmp_path: Path) -> None:
    listing = list_archive(str(fill(tmp_path, *MIXED)))
    assert ids(listing) == ["a.nii", "b/1.NII.GZ", "b/2.nii.gz", "imagesTr/c.nii.gz"]
    assert listing.skipped == {"hidden": 3, "label_mask": 4, "not_a_volume": 4}
    assert listing.listed == len(MIXED)
    assert listing.archive_uri == str(tmp_path)


def test_an_object_is_what_the_disk_says(tmp_path: Path) -> None:
    fill(tmp_path, "b/2.nii.gz")
    os.utime(tmp_path / "b/2.nii.gz", (1_700_000_000.25, 1_700_000_000.25))
    (item,) = list_archive(f"file://{tmp_path}/").items()
    assert item.uri == str(tmp_path / "b/2.nii.gz")
    assert item.size_bytes == len("b/2.nii.gz")
    assert item.etag is None
    assert item.mtime == "2023-11-14T22:13:20.250000+00:00"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.nii", ["a.nii"]),
        ("2*", ["b/2.nii.gz"]),
        ("b/*", ["b/1.NII.GZ", "b/2.nii.gz"]),
        ("./b/*", ["b/1.NII.GZ", "b/2.nii.gz"]),
        ("**/*.nii.gz", ["b/2.nii.gz", "imagesTr/c.nii.gz"]),
        ("images*/**", ["imagesTr/c.nii.gz"]),
        ("?.nii", ["a.nii"]),
        ("none", []),
    ],
)
def test_pattern(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    mixed = [name for name in MIXED if name != "b/nii"]  # whose name does not tell what it is
    listing = list_archive(str(fill(tmp_path, *mixed)), pattern)
    assert ids(listing) == expected
    assert listing.skipped.get("outside_glob", 0) == 4 - len(expected)
    assert listing.listed == len(mixed)


def test_a_pattern_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\*\*b"):
        list_archive(str(fill(tmp_path, "a.nii")), "x/a**b/*")


def test_a_single_file_is_an_archive_of_one(tmp_path: Path) -> None:
    fill(tmp_path, "b/2.nii.gz", "b/3.nii.gz")
    listing = list_archive(str(tmp_path / "b/2.nii.gz"))
    assert ids(listing) == ["2.nii.gz"]
    assert [item.uri for item in listing.items()] == [str(tmp_path / "b/2.nii.gz")]


def test_memory_store() -> None:
    root = f"memory://archive-{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    assert isinstance(fs, MemoryFileSystem)
    for name in ("x/1.nii.gz", "x/._1.nii.gz", "2.nii"):
        fs.pipe_file(f"{root}/{name}", b"abc")
    fs.pipe_file(f"{root}-other/3.nii", b"abc")
    listing = list_archive(f"{root}/")
    assert ids(listing) == ["2.nii", "x/1.nii.gz"]
    first, second = listing.items()
    assert second.uri == f"{root}/x/1.nii.gz"
    assert second.size_bytes == 3
    assert second.mtime is not None
    assert listing.skipped == {"hidden": 1}
    with fsspec.open(first.uri) as file:
        assert file.read() == b"abc"


def test_a_listing_is_never_answered_from_a_cache() -> None:
    root = f"memory://archive-{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"{root}/1.nii", b"abc")
    assert ids(list_archive(root)) == ["1.nii"]
    fs.pipe_file(f"{root}/2.nii", b"abc")
    assert ids(list_archive(root)) == ["1.nii", "2.nii"]


@pytest.mark.parametrize("uri", ["memory://nothing-here", "{tmp}/absent", "{tmp}/empty", "nosuchstore://x/y"])
def test_nothing_to_list_is_a_usage_error(tmp_path: Path, uri: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"nothing-here|absent|empty|nosuchstore"):
        list_archive(uri.format(tmp=tmp_path))


def test_dataset_json_is_noted_at_the_root_and_one_folder_below(tmp_path: Path) -> None:
    fill(tmp_path, "dataset.json", "Task03_Liver/dataset.json", "a/b/dataset.json", ".x/dataset.json", "a.nii")
    assert list_archive(str(tmp_path)).descriptions == ("Task03_Liver/dataset.json", "dataset.json")


class RefusedByBotocoreError(Exception):
    """As botocore's NoCredentialsError, which is no OSError."""

    __module__ = "botocore.exceptions"


@pytest.mark.parametrize("error", [RefusedByBotocoreError("no credentials"), PermissionError("no credentials")])
def test_a_store_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """B9."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "find", refuse)
    with pytest.raises(UnreachableError, match=r"memory://x cannot be listed: no credentials"):
        list_archive("memory://x")


def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("a fault")

    monkeypatch.setattr(MemoryFileSystem, "find", fail)
    with pytest.raises(TypeError, match="a fault"):
        list_archive("memory://x")


def test_what_stores_call_etag_and_time() -> None:
    assert identity_of({"ETag": '"abc-2"'}).etag == "abc-2"
    assert identity_of({"etag": "abc"}).etag == "abc"
    assert identity_of({"size": 3}) == Identity(3, None, None)
    for detail, expected in (
        ({"LastModified": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}, "2026-01-02T03:04:05.000000+00:00"),
        ({"created": datetime(2026, 1, 2)}, "2026-01-02T00:00:00.000000+00:00"),  # noqa: DTZ001
        ({"updated": "2026-01-02T00:00:00Z"}, "2026-01-02T00:00:00Z"),
        ({"mtime": 1e13}, "@10000000000000.0"),  # after the year 9999
    ):
        assert identity_of(detail).mtime == expected


def test_linked_files_and_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    elsewhere, archive = tmp_path / "elsewhere", tmp_path / "archive"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "a.nii.gz").write_bytes(b"a")
    archive.mkdir()
    (archive / "b.nii").symlink_to(elsewhere / "deep" / "a.nii.gz")
    (archive / "one").symlink_to(elsewhere)
    (archive / "two").symlink_to(elsewhere / "deep")
    (archive / "gone.nii").symlink_to(tmp_path / "nothing")
    (elsewhere / "back").symlink_to(archive)
    listing = list_archive(str(archive))
    assert ids(listing) == ["b.nii", "gone.nii", "one/deep/a.nii.gz", "two/a.nii.gz"]
    assert listing.objects["size_bytes"].to_pylist() == [1, 0, 1, 1]
