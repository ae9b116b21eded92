"""A store that somebody else made: whatever it says, nothing outside it or the cache is read, written or deleted."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from medret.errors import CorruptError, MedretError
from medret.search import open_snapshot
from medret.storage import Location
from tests.search.forging import forge_manifest, forge_rows


@pytest.fixture
def store(made_store: Any, tmp_path: Path) -> Location:
    """A copy of the made store that a test may forge."""
    shutil.copytree(made_store.uri, tmp_path / "store")
    return Location(tmp_path / "store")


@pytest.fixture
def remote(made_store: Any) -> Location:
    """The same in an object store, so that it is read by way of the cache."""
    root = f"memory://hostile-{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(made_store.uri, root, recursive=True)
    return Location(root)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the reader's."""
    file = tmp_path / "home" / "thesis.txt"
    file.parent.mkdir()
    file.write_text("years of work")
    return file


def test_a_checksum_that_is_a_path_deletes_nothing(remote: Location, precious: Path) -> None:
    """E0: it became the path of the cache's copy, which was deleted because its content was another."""

    def in_manifest(content: dict[str, Any]) -> None:
        content["tables"][0]["sha256"] = str(precious)

    def in_table(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["sha256"] = str(precious)

    forgeries: list[Callable[[], str]] = [
        lambda: forge_rows(remote, "files", in_table),
        lambda: forge_manifest(remote, in_manifest),
    ]
    for forge in forgeries:
        forge()
        with pytest.raises(MedretError) as caught:
            open_snapshot(remote.uri).search("synthetic/liver_0000.nii.gz", 3)
        assert precious.read_text() == "years of work"
        assert "\n" not in str(caught.value)


def test_the_cache_is_asked_for_checksums_only(remote: Location, precious: Path, tmp_path: Path) -> None:
    """E0: the last place where a checksum becomes a path checks it too."""
    from medret.search.cache import LocalFiles

    for wrong in (str(precious), "../home/thesis.txt", "A" * 64, "0" * 63, "0" * 64 + "\n", ""):
        with pytest.raises(CorruptError, match="64 hex digits"):
            LocalFiles(remote, tmp_path / "cache").path("CURRENT", wrong)
    assert precious.read_text() == "years of work"
