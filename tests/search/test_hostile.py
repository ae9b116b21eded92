"""A store that somebody else made: whatever it says, nothing outside it or the cache is read, written or deleted."""

from __future__ import annotations

import io
import json
import os
import shutil
import tracemalloc
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medret.cli.main import main
from medret.embeddings.parquet import read_parquet
from medret.errors import CorruptError, DroppedError, MedretError, UsageError, VersionError, WeightsError
from medret.index.rows import ROW_FILE
from medret.pipeline.known import read_known
from medret.search import open_snapshot
from medret.search.encoding import load_encoder
from medret.search.places import Refused, place_of
from medret.snapshot import read_manifest, verify_store
from medret.snapshot.history import history
from medret.snapshot.lease import leased
from medret.snapshot.sweep import sweep
from medret.storage import Location
from tests.search.forging import forge_file, forge_manifest, forge_rows, forge_table

ID = "synthetic/liver_0000.nii.gz"


def everything(store: Location) -> None:
    """Every way to read a store, each of which works or says in one line what is wrong."""
    ways: list[Callable[[], object]] = [
        lambda: history(store),
        lambda: verify_store(store),
        lambda: read_known(store),
        lambda: _sweep(store),
        lambda: _search(store),
    ]
    for way in ways:
        try:
            way()
        except MedretError as error:
            one_line(error)


def one_line(error: MedretError) -> None:
    """What people see of an error is one line."""
    assert "\n" not in str(error), error


def _sweep(store: Location) -> None:
    with leased(store, "a test") as lease:
        sweep(store, lease, keep=1, older_than=timedelta(0), dry_run=True)


def _search(store: Location) -> None:
    snapshot = open_snapshot(store.uri)
    snapshot.labels()
    for index, mode in (("hnsw", "volume"), ("lsh", "late"), ("exact", "vote")):
        snapshot.search(ID, 3, index=index, mode=mode, slices="0mm:1mm" if mode == "late" else None)


def refusal(store: Location) -> str:
    """The one line with which a search is refused."""
    with pytest.raises(CorruptError) as caught:
        _search(store)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def _set_all(rows: list[dict[str, Any]], name: str, value: object) -> None:
    for row in rows:
        row[name] = value


def _without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns([column])


# --- E1: paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../home/thesis.txt", "{absolute}", "indices/../../home/thesis.txt", "CURRENT"])
def test_a_path_out_of_the_store_is_refused_by_every_reader(store: Location, precious: Path, path: str) -> None:
    """E1: such files were read by a search, and deleted and written by `forget`."""

    def elsewhere(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["path"] = path.format(absolute=precious)

    forge_rows(store, "files", elsewhere)
    assert "is no name of a file of kind" in refusal(store)
    everything(store)
    assert main(["forget", store.uri, ID]) == 1
    assert precious.read_text() == "years of work"
    assert [file.name for file in precious.parent.iterdir()] == ["thesis.txt"]


def test_a_name_of_another_kind_or_content_is_refused(store: Location) -> None:
    """E1: a row that says `rows` of an index's file, or gives another sha256 than the name."""
    forge_rows(store, "files", lambda rows: rows[0].update(kind="rows" if rows[0]["kind"] != "rows" else "exact"))
    everything(store)
    assert "is no name of a file" in refusal(store)


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
    told = "no regular file" if made == "fifo" else "leads out of"
    with pytest.raises(MedretError, match=told):
        _search(store)
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


# --- E2, E3: index files ------------------------------------------------------------------------------------------


def _rows_file(change: Callable[[dict[str, Any]], None], **options: Any) -> Callable[[bytes], bytes]:
    """A row table whose columns were changed."""

    def changed(data: bytes) -> bytes:
        batch = pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)
        columns = {name: batch.column(name) for name in ROW_FILE.names}
        change(columns)
        made = pa.RecordBatch.from_arrays(list(columns.values()), schema=ROW_FILE)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, ROW_FILE, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_batch(made)
        return bytes(sink.getvalue())

    return changed


def _wild_offsets(columns: dict[str, Any]) -> None:
    ids = columns["volume_id"]
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[: len(ids) + 1].copy()
    offsets[1:-1] = 2**31 - 1
    columns["volume_id"] = pa.Array.from_buffers(pa.string(), len(ids), [None, pa.py_buffer(offsets), ids.buffers()[2]])


def _same_as(value: int) -> Callable[[dict[str, Any]], None]:
    def change(columns: dict[str, Any]) -> None:
        columns["same_as"] = pa.array([value] * len(columns["same_as"]), pa.int32())

    return change


@pytest.mark.parametrize("change", [_wild_offsets, _same_as(2**31 - 1), _same_as(-7), _same_as(1)])
def test_a_forged_row_table_is_one_line(store: Location, change: Callable[[dict[str, Any]], None]) -> None:
    """E2: it ended the process, took 16 GiB, or was a traceback."""
    forge_file(store, "rows", _rows_file(change))
    assert "is no row table that medret writes" in refusal(store)
    everything(store)


def test_a_compressed_row_table_is_not_unpacked(store: Location) -> None:
    """E2, E7: pyarrow unpacks it to whatever size it names, as soon as its batch is asked for."""
    forge_file(store, "rows", _rows_file(lambda columns: None, compression="zstd"))
    assert "is compressed" in refusal(store)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "lsh"])
def test_the_sizes_in_an_index_file_are_checked_before_faiss_reads_it(store: Location, kind: str) -> None:
    """E3: any length, raised to 2^40 or lowered, is told by the file's own size; FAISS would take the memory."""
    rng = np.random.default_rng(3)
    original = next(path for path in store.files("indices") if f"/{kind}-" in path)
    sound = store.read(original)
    from medret.index import JUDGES

    file = Path(store.path("forged"))
    file.write_bytes(sound)
    JUDGES[kind](file)
    refused = 0
    for place in rng.integers(0, min(len(sound), 400), 200).tolist():
        forged = bytearray(sound)
        forged[place : place + 8] = (2**40 + 1).to_bytes(8, "little") if place % 2 else b"\xff" * 8
        file.write_bytes(forged[: len(sound)])
        try:
            JUDGES[kind](file)
        except CorruptError as error:
            one_line(error)
            refused += 1
    file.unlink()
    assert refused
    forge_file(store, kind, lambda data: data[:40] + b"\xff" * 8 + data[48:])
    refusal(store)
    everything(store)


def test_a_graph_whose_links_lead_out_of_it_is_refused(store: Location) -> None:
    """E3: FAISS follows a link to any address."""
    links = next(path for path in store.files("indices") if "/hnsw-" in path)
    sound = store.read(links)

    def wild(data: bytes) -> bytes:
        marked = data.rindex((0).to_bytes(4, "little"), 0, data.rindex(b"IxSQ") - 20)
        return data[:marked] + (2**30).to_bytes(4, "little") + data[marked + 4 :]

    assert len(wild(sound)) == len(sound)
    forge_file(store, "hnsw", wild)
    assert "is not an index that medret writes" in refusal(store)


# --- E5, E7: manifests and tables ---------------------------------------------------------------------------------


def _nested(content: dict[str, Any]) -> bytes:
    deep = b"[" * 200_000 + b"]" * 200_000
    return json.dumps(content).encode().replace(b'"index_settings": {', b'"index_settings": {"deep": ' + deep + b", ")


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nested": _nested,
    "no recipes": lambda content: content.update(recipes=[]),
    "no model": lambda content: content["recipes"][0]["recipe"].pop("model"),
    "wide": lambda content: content["recipes"][0]["recipe"]["model"].update(dim=2**40),
    "no aggregations": lambda content: content.update(aggregations=[]),
    "no tables": lambda content: content.update(tables=[]),
    "table elsewhere": lambda content: content["tables"][0].update(path="../../../home/thesis.txt"),
    "created": lambda content: content.update(created="yesterday"),
    "not JSON": lambda content: b"{",
    "large": lambda content: b" " * (5 << 20) + json.dumps(content).encode(),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_forged_manifest_is_one_line_that_names_it(store: Location, change: Callable[[dict[str, Any]], Any]) -> None:
    """E5: tracebacks of RecursionError, KeyError and IndexError."""
    forge_manifest(store, change)
    assert "manifest.json" in refusal(store)
    everything(store)


def test_a_manifest_of_another_format_is_not_damaged(store: Location) -> None:
    """E5: it is another version's, as one with fields that this version does not know."""
    for change in (lambda content: content.update(format=2), lambda content: content.update(later=1)):
        forged = forge_manifest(store, change)
        with pytest.raises(VersionError, match="format that this version does not know"):
            read_manifest(store, forged)


def test_facts_that_are_no_json_are_one_line(store: Location) -> None:
    """E5: a traceback where the slices of a query are asked for in millimetres."""
    for facts in ("{", "[]", '{"spacing_assumed": false}', "[" * 200_000):
        forge_rows(store, "ledger", partial(_set_all, name="facts", value=facts))
        everything(store)
        with pytest.raises(CorruptError, match="facts"):
            open_snapshot(store.uri)._contents.ledger.spacing_mm(ID)


def test_a_table_without_a_column_is_one_line(store: Location) -> None:
    """E3: a KeyError's traceback."""
    for kind, column in (("files", "shard"), ("ledger", "shards"), ("ledger", "volume_id")):
        live = store.read("CURRENT")
        forge_table(store, kind, partial(_without, column=column))
        assert column in refusal(store)
        everything(store)
        store.write("CURRENT", live)


def _bomb(values: int, text: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(values, np.int32)), [text])
    pq.write_table(pa.table({"volume_id": one if text else pa.nulls(values, pa.bool_())}), buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("values", "length"), [(40_000_000, 0), (200_000, 1_000_000)])
def test_a_small_table_that_unpacks_to_much_is_refused_unread(store: Location, values: int, length: int) -> None:
    """E7: rows of one value, and one long text that every row repeats (200 GB), in a few kilobytes."""
    data = _bomb(values, "x" * length, compression="zstd")
    assert len(data) < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(CorruptError, match="unpack to"):
        read_parquet(data, name="tombstones.parquet")
    assert pa.total_allocated_bytes() - before < 1 << 26
    forge_table(store, "ledger", lambda table: data)
    refusal(store)
    everything(store)


def test_a_centre_of_any_size_is_refused_unread() -> None:
    """E7: NumPy would take memory for 2^40 values."""
    from medret.index import centre_of

    sound = io.BytesIO()
    np.save(sound, np.ones(32, np.float32))
    assert centre_of(sound.getvalue(), "centre", 32).shape == (32,)
    wide = sound.getvalue().replace(b"(32,)", b"(1099511627776,)".ljust(5))
    tracemalloc.start()
    for wrong in (wide, sound.getvalue()[:-4], sound.getvalue() + b"1234", b"", b"\x93NUMPY\x01\x00"):
        with pytest.raises(CorruptError, match="centre"):
            centre_of(wrong, "centre", 32)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_two_hundred_mutations_end_in_an_answer_or_one_line(store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """E2, E3, E5, E7: bytes flipped and values swapped, every checksum made to fit; no crash, no traceback."""
    rng = np.random.default_rng(7)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    live = store.read("CURRENT")
    kinds = ["files", "ledger", "exact", "hnsw", "lsh", "rows"]
    odd: list[Any] = [None, "", "x" * 5000, "../..", -1, 2**40, 0.5, [], {}, [[]], "\x00", True]

    def flipped(data: bytes) -> bytes:
        made = bytearray(data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 4))):
            made[place] ^= 1 << int(rng.integers(0, 8))
        return bytes(made)

    def swapped(content: dict[str, Any]) -> None:
        holder: Any = content
        while True:
            key = rng.choice(list(holder)) if isinstance(holder, dict) else int(rng.integers(0, len(holder)))
            if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
                holder = holder[key]
                continue
            holder[key] = odd[int(rng.integers(0, len(odd)))]
            return

    for number in range(200):
        store.write("CURRENT", live)
        kind = kinds[number % len(kinds)]
        if number % 3 == 0:
            forged = forge_manifest(store, swapped)
        elif kind in ("files", "ledger"):
            entry = next(path for path in store.files(f"snapshots/{live.decode().strip()}") if f"/{kind}-" in path)
            forged = forge_table(store, kind, partial(lambda data, table: flipped(data), store.read(entry)))
        else:
            forged = forge_file(store, kind, flipped, None if number % 2 else "mean")
        try:
            _search(store) if number % 5 else everything(store)
        except MedretError as error:
            one_line(error)
        shutil.rmtree(store.path(f"snapshots/{forged}"))


# --- E6: what is read elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("archive", "store", "volume_id", "uri", "given", "place"),
    [
        ("/data/nifti", "/data/store", "a/b.nii.gz", "/data/nifti/a/b.nii.gz", None, "/data/nifti/a/b.nii.gz"),
        ("/data/b.nii", "/data/store", "b.nii", "/data/b.nii", None, "/data/b.nii"),
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
    found = place_of(volume_id, uri, archive=archive, store=store, given=given)
    assert found == (uri if place is None else place)
    assert isinstance(found, Refused) == (place is None)


def test_a_page_and_a_query_read_no_place_that_a_ledger_names(
    store: Location, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E6: other hosts were asked with the volume id, local files were read and their first bytes shown."""

    def fail(*args: Any, **options: Any) -> bytes:
        raise AssertionError(f"{args[0]} was read")

    monkeypatch.setattr("medret.search.page_images.fetch_volume", fail)
    monkeypatch.setattr("medret.search.resolve.read_volume_query", fail)
    for number, uri in enumerate(("http://evil.example/steal", str(precious))):
        forge_rows(store, "ledger", partial(_set_all, name="uri", value=uri))
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
    new = forge_manifest(store, lambda content: content.update(run="later"))
    store.write("CURRENT", f"{old}\n".encode())

    def replaced(place: Location, snapshot_id: str) -> Any:
        manifest = read_manifest(place, snapshot_id)
        if snapshot_id == old:
            store.write("CURRENT", f"{new}\n".encode())
            shutil.rmtree(store.path(f"snapshots/{old}"))
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
    shutil.rmtree(store.path("snapshots"))
    reads: list[Callable[[], object]] = [lambda: snapshot.search(ID, 2), snapshot.labels, lambda: snapshot.volume(ID)]
    for read in reads:
        with pytest.raises(DroppedError, match=r"is no longer in .*: it was removed while it was open; open the store"):
            read()
