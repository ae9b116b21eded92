"""A store that somebody else made: whatever it says, nothing outside it or the cache is read, written or deleted."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from medret.cli.main import main
from medret.errors import CorruptError, DroppedError, MedretError, NotFoundError, UsageError, WeightsError
from medret.search import open_snapshot
from medret.search.encoders import _model_of, load_encoder
from medret.search.places import Refused, place_of
from medret.snapshot import read_manifest
from medret.storage import Location
from tests.search.conftest import make_store, recipe_of, synthetic_volumes
from tests.search.forging import forge_manifest, forge_rows, forge_table
from tests.search.opening import ID, everything, refusal, search_it, set_all


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


# --- E1: paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../home/thesis.txt", "{absolute}", "indices/../../home/thesis.txt", "CURRENT"])
def test_a_path_out_of_the_store_is_refused_by_every_reader(store: Location, precious: Path, path: str) -> None:
    """E1: such files were read by a search, and deleted and written by `forget`."""

    def elsewhere(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["path"] = path.format(absolute=precious)

    forge_rows(store, "files", elsewhere)
    assert "does not name a file of kind" in refusal(store)
    everything(store)
    assert main(["forget", store.uri, ID]) == 1
    assert precious.read_text() == "years of work"
    assert [file.name for file in precious.parent.iterdir()] == ["thesis.txt"]


def test_a_name_of_another_kind_or_content_is_refused(store: Location) -> None:
    """E1: a row that says `rows` of an index's file, or gives another sha256 than the name."""
    forge_rows(store, "files", lambda rows: rows[0].update(kind="rows" if rows[0]["kind"] != "rows" else "exact"))
    everything(store)
    assert "does not name a file" in refusal(store)


@pytest.mark.parametrize("made", ["fifo", "device", "outside"])
def test_only_plain_files_inside_the_store_are_read(store: Location, tmp_path: Path, made: str) -> None:
    """E1, E5: a pipe and /dev/zero were read for ever; a link may lead anywhere."""
    for forged in store.files("indices"):
        path = Path(store.path(forged))
        held = path.read_bytes()
        path.unlink()
        if made == "fifo":
            os.mkfifo(path)
        elif made == "device":
            path.symlink_to("/dev/zero")
        else:
            (tmp_path / path.name).write_bytes(held)
            path.symlink_to(tmp_path / path.name)
    told = "not a regular file" if made == "fifo" else "leads out of"
    with pytest.raises(MedretError, match=told):
        search_it(store)
    with pytest.raises(MedretError, match=told):
        store.read(forged)


def test_nothing_is_written_or_deleted_through_a_link(store: Location, precious: Path) -> None:
    """E1: a folder of the store that is a link to one of the user's."""
    Path(store.path("quarantine")).symlink_to(precious.parent)
    with pytest.raises(CorruptError, match="leads out of"):
        store.delete("quarantine/thesis.txt")
    with pytest.raises(CorruptError, match="leads out of"):
        store.write("quarantine/new", b"x")
    assert [file.name for file in precious.parent.iterdir()] == ["thesis.txt"]


# --- E6: what is read elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("archive", "store", "volume_id", "uri", "given", "place"),
    [
        ("/data/nifti", "/data/store", "a/b.nii.gz", "/data/nifti/a/b.nii.gz", None, "/data/nifti/a/b.nii.gz"),
        ("/data/b.nii", "/data/store", "b.nii", "/data/b.nii", None, "/data/b.nii"),
        ("/data/b.nii", "/data/store", "b.nii", "/data/b.nii", "/mnt/b.nii", "/mnt/b.nii"),
        ("/data/nifti", "/data/store", "nifti", "/data/nifti/nifti", "/mnt/nifti", "/mnt/nifti/nifti"),
        ("s3://b/nifti", "s3://b/medret", "b.nii", "s3://b/nifti/b.nii", None, "s3://b/nifti/b.nii"),
        ("/data/nifti", "s3://b/medret", "b.nii", "/data/nifti/b.nii", None, "/data/nifti/b.nii"),
        ("http://h/nifti", "http://h/medret", "b.nii", "http://h/nifti/b.nii", None, "http://h/nifti/b.nii"),
        ("http://h/nifti", "/data/store", "b.nii", "http://h/nifti/b.nii", None, None),
        ("http://h:81/nifti", "http://h/medret", "b.nii", "http://h:81/nifti/b.nii", None, None),
        ("s3://b/nifti", "/data/store", "b.nii", "s3://b/nifti/b.nii", None, None),
        ("s3://b/nifti", "/data/store", "b.nii", "s3://b/nifti/b.nii", "s3://b/nifti", "s3://b/nifti/b.nii"),
        ("http://evil/x", "/data/store", "b.nii", "http://evil/x/b.nii", "/mnt/nifti", "/mnt/nifti/b.nii"),
        ("/data/nifti", "/data/store", "b.nii", "/home/me/b.nii", None, None),
        ("/data/nifti", "/data/store", "b.nii", "http://evil/b.nii", None, None),
        ("/etc", "/data/store", "passwd", "/etc/passwd", None, None),
        ("/etc", "/data/store", "passwd", "/etc/passwd", "/etc", None),
        ("/data/nifti", "/data/store", "../me/b.nii", "/data/nifti/../me/b.nii", None, None),
        ("/data/nifti", "/data/store", "../me/b.nii", "/data/nifti/../me/b.nii", "/data/nifti", None),
        ("relative", "/data/store", "b.nii", "relative/b.nii", None, None),
        ("zip://x::http://h/a", "http://h/medret", "b.nii", "zip://x::http://h/a/b.nii", None, None),
    ],
)
def test_where_a_volume_may_be_read(
    archive: str, store: str, volume_id: str, uri: str, given: str | None, place: str | None
) -> None:
    """E6: only the archive's own volumes, from this machine, the store's server, or where the user says."""
    found = place_of(volume_id, uri, archive=archive, store=store, user_archive=given)
    assert found == (uri if place is None else place)
    assert isinstance(found, Refused) == (place is None)


def test_a_page_and_a_query_read_no_place_that_a_ledger_names(
    store: Location, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E6: other hosts were asked with the volume id, local files were read and their first bytes shown."""

    def fail(*args: Any, **options: Any) -> bytes:
        raise AssertionError(f"{args[0]} was read")

    monkeypatch.setattr("medret.search.pictures.read_volume_query", fail)
    monkeypatch.setattr("medret.search.resolve.read_volume_query", fail)
    for number, uri in enumerate(("http://evil.example/steal", str(precious))):
        forge_rows(store, "ledger", partial(set_all, name="uri", value=uri))
        page = precious.with_suffix(f".{number}.html")
        assert main(["search", store.uri, ID, "--html", str(page), "-k", "2"]) == 0
        assert page.read_text().count("lies outside its archive") == 3
        with pytest.raises(UsageError, match="lies outside its archive"):
            open_snapshot(store.uri).search(ID, 2, box="0:1,0:1,0:1")
    moved = open_snapshot(store.uri, archive=precious.parent)
    assert moved.uri_of_query(ID) == f"{precious.parent}/{ID}"


def test_weights_are_not_fetched_from_an_address_in_a_store(store: Location) -> None:
    """E6: a query that is a file asked whatever address the manifest gives for the weights."""
    forge_manifest(store, lambda content: content["recipes"][0].update(weights_uri="http://evil.example/w.pth"))
    entry = open_snapshot(store.uri).manifest.recipes[0]
    with pytest.raises(WeightsError, match="which only the store names; give them with --weights"):
        load_encoder(entry, None, "cpu")


# --- B14: readers while snapshots go ------------------------------------------------------------------------------


def test_opening_follows_a_snapshot_that_was_published_meanwhile(
    store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B14: the snapshot that CURRENT named is gone by the time its tables are read."""
    old = store.read("CURRENT").decode().strip()
    new = forge_table(store, "files", lambda table: table.replace_schema_metadata({"written": "later"}))
    store.write("CURRENT", f"{old}\n".encode())

    def replaced(place: Location, snapshot_id: str) -> Any:
        manifest = read_manifest(place, snapshot_id)
        if snapshot_id == old:
            store.write("CURRENT", f"{new}\n".encode())
            shutil.rmtree(store.path(f"snapshots/{old}"))
            store.delete(manifest.tables_of("files")[0].path)
        return manifest

    monkeypatch.setattr("medret.search.snapshot.read_manifest", replaced)
    assert open_snapshot(store.uri).id == new


def test_a_reader_whose_snapshot_was_removed_is_told_that(store: Location) -> None:
    """B14: it was told to restore a file; a file that is missing for another reason is still named."""
    snapshot, broken = open_snapshot(store.uri), open_snapshot(store.uri)
    for path in store.files("indices"):
        store.delete(path)
    with pytest.raises(CorruptError, match="is missing: restore it"):
        broken.search(ID, 2)
    for folder in ("snapshots", "tables"):
        shutil.rmtree(store.path(folder))
    reads: list[Callable[[], object]] = [lambda: snapshot.search(ID, 2), snapshot.labels, lambda: snapshot.volume(ID)]
    for read in reads:
        with pytest.raises(DroppedError, match=r"is no longer in .*: it was removed while it was open; open the store"):
            read()


def test_vectors_of_another_version_are_not_compared_with_new_ones(tmp_path: Path) -> None:
    recipe = recipe_of()
    older = replace(recipe, model=replace(recipe.model, vectors_version=recipe.model.vectors_version - 1))
    made = make_store(tmp_path / "older", synthetic_volumes(2), recipe=older)
    snapshot = open_snapshot(made.uri)
    with pytest.raises(UsageError, match="search with the id of a volume, or index again"):
        _model_of(snapshot.manifest.recipes[0], "random")
    assert snapshot.search(made.ids[0], 1)[0].volume_id == made.ids[0]


def test_a_name_that_is_no_text_names_no_volume(store: Location) -> None:
    with pytest.raises(NotFoundError, match="there is no volume"):
        open_snapshot(store.uri).explain(ID, "\udcff")
