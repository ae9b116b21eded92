"""Filesystems behind URIs, and their failures in medret's words."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medret.archive import list_archive
from medret.cli import main
from medret.errors import MissingPackageError, UnreachableError, UsageError
from medret.search.query_files import read_volume_query
from medret.storage import Location, is_store_failure, read_uri
from medret.storage.filesystems import cat


@pytest.mark.parametrize("operation", [Location, read_uri])
def test_a_server_that_does_not_answer(operation: Callable[[str], object]) -> None:
    """A16: while opening (ftp connects at once)."""
    with pytest.raises(UnreachableError, match=r"ftp://127\.0\.0\.1:1/x cannot be opened: .*refused"):
        operation("ftp://127.0.0.1:1/x")


@pytest.mark.parametrize("operation", [read_uri, read_volume_query, list_archive])
def test_a_web_server_that_does_not_answer_is_no_missing_file(operation: Callable[[str], object]) -> None:
    """B9: fsspec calls it a missing file."""
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:1/x\.nii cannot be (read|listed): "):
        operation("http://127.0.0.1:1/x.nii")


def test_the_command_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A16, B9: exit code 1 where the network is the cause, 2 where the request is."""
    for archive, code in (
        ("ftp://127.0.0.1:1/x", 1),
        ("http://127.0.0.1:1/x/", 1),
        ("nosuchstore://x", 2),
        (str(tmp_path / "absent"), 2),
    ):
        assert main(["plan", archive, str(tmp_path / "store")]) == code
        assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_library_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A16, A10."""
    known = importlib.import_module("fsspec.registry")._registry  # by whoever ran before
    for module, uri, words in (("s3fs", "s3://b", r"medret\[s3\]"), ("gcsfs", "gs://b", "gcsfs")):
        monkeypatch.delitem(known, uri.partition(":")[0], raising=False)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingPackageError, match=words):
            Location(uri)


def test_a_fault_of_the_program_is_no_failure_of_a_store() -> None:
    class OfALibraryError(Exception):
        """As libraries define their own."""

    assert all(map(is_store_failure, (OSError("x"), ValueError("x"), EOFError(), OfALibraryError())))
    assert not any(map(is_store_failure, (TypeError("x"), KeyError("x"), AttributeError("x"), UsageError("x"))))


@pytest.mark.parametrize(
    ("response", "is_empty"),
    [
        ({"Error": {"Code": "InvalidRange"}}, True), ({"Error": {"Code": "416"}}, True),
        ({"Error": {"Code": "InvalidArgument"}}, False), ({"Error": None}, False), ({}, False), (object(), False),
        (None, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [OSError, FileNotFoundError])
def test_a_range_behind_the_end_is_empty_and_other_failures_stay(
    kind: type[OSError], response: Any, is_empty: bool
) -> None:
    class Refuses:
        def cat_file(self, *_: object, **__: object) -> bytes:
            cause: Any = Exception()
            cause.response = response
            raise kind(errno.EINVAL, "refused") from cause

    if is_empty:
        assert cat(Refuses(), "x", 0, 9) == b""
    else:
        with pytest.raises(kind):
            cat(Refuses(), "x", 0, 9)
