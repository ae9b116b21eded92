"""The first stage's reading: each object's bytes or why it has none, whatever its name is and whatever became of it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest

from medret.archive import ArchiveObject, list_archive
from medret.errors import QuarantineCode, VolumeError
from medret.html.cards import ImageRequest, load_images
from medret.pipeline import read_stage
from medret.pipeline.batch_schema import SOURCE
from medret.pipeline.content_hashes import equal_samples, hash_all, sample_all
from medret.pipeline.read_stage import Content, ReadStage, _with_contents
from medret.recipe import SliceRecipe
from medret.search.query_files import read_query
from medret.storage import Location, StoredObject, filesystems, given_options, uris, use_options
from medret.volume import Limits
from medret.volume.nifti import START_BYTES

ODD_KEYS = (
    "scan[001].nii.gz",
    "a*b.nii.gz",
    "what?.nii.gz",
    "what?token=x.nii.gz",
    "a b+c%20d.nii.gz",
    "a::b.nii.gz",
    "x//y.nii",
    "{a,b}!.nii",
    *(unicodedata.normalize(form, "Schädel ü.nii") for form in ("NFC", "NFD")),
)


def read_all(objects: tuple[ArchiveObject, ...], limits: Limits | None = None) -> dict[str, Content]:
    """What the stage gets of each object."""
    rows: list[dict[str, Any]] = [asdict(item) for item in objects]
    return {row["volume_id"]: content for row, content in _with_contents(rows, limits or Limits())}


def refusal(content: Content) -> VolumeError:
    assert isinstance(content, VolumeError)
    return content


@pytest.mark.s3
def test_every_key_is_a_name(s3: Callable[[str], str]) -> None:
    """A1: listed, read, hashed, compared, asked with and shown, by its own name and no other."""
    archive = f"{s3('keys')}/[a]*"
    store = Location(archive)
    client = store.fs
    written = {key: f"content of {key}".encode() for key in ODD_KEYS}
    for key, content in written.items():
        client.pipe_file(f"{store.root}/{key}", content)
    objects = tuple(list_archive(archive).items())
    assert {item.volume_id for item in objects} == set(ODD_KEYS)
    assert read_all(objects) == written
    hashes = {key: hashlib.sha256(content).hexdigest() for key, content in written.items()}
    assert hash_all(objects) == hashes
    assert {item.volume_id: read_query(item.uri) for item in objects} == written
    ids = [item.volume_id for item in objects]
    unlike = pa.table({"volume_id": ids, "etag": pa.nulls(len(ids), pa.string()), "alike": [1] * len(ids)})
    sizes = [replace(item, size_bytes=1) for item in objects]
    assert equal_samples(unlike, lambda _: sizes, sample_all) == set()
    requests = [ImageRequest(item.uri, ("x", None)) for item in objects]
    images = load_images(
        requests, SliceRecipe(), fetch=lambda request: read_query(request.uri), identify=lambda uri, _: (uri, None)
    )
    assert all("not_nifti" in str(shown) for shown in images.values())


@pytest.mark.s3
def test_a_key_that_vanished_is_unreadable_alone(s3: Callable[[str], str]) -> None:
    """A1: whatever opening or fetching raises is that volume's."""
    archive = s3("vanished")
    for key in ("a.nii", "b[0].nii", "c.nii"):
        Location(archive).fs.pipe_file(f"{Location(archive).root}/{key}", key.encode())
    objects = tuple(list_archive(archive).items())
    Location(archive).delete("b[0].nii")
    strange = ArchiveObject("d.nii", "nosuchscheme://x/d.nii", 1, None, None)
    contents = read_all((*objects, strange))
    assert [contents["a.nii"], contents["c.nii"]] == [b"a.nii", b"c.nii"]
    for volume_id in ("b[0].nii", "d.nii"):
        assert refusal(contents[volume_id]).code == QuarantineCode.UNREADABLE


def test_what_is_no_file_any_more_is_unreadable_at_once(tmp_path: Path) -> None:
    """A2, A21: a listed file that became a FIFO, a folder, a link to itself, to a device; links that lead nowhere."""
    names = ("fifo", "folder", "loop", "zero", "gone", "long", "good")
    for name in names:
        (tmp_path / f"{name}.nii").write_bytes(b"x")
    objects = tuple(list_archive(str(tmp_path)).items())
    for name in names[:-1]:
        (tmp_path / f"{name}.nii").unlink()
    os.mkfifo(tmp_path / "fifo.nii")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    (tmp_path / "long.nii").symlink_to("x" * 300)
    contents = read_all(objects)
    assert contents.pop("good.nii") == b"x"
    assert {refusal(content).code for content in contents.values()} == {QuarantineCode.UNREADABLE}


def header(side: int, n: int) -> bytes:
    """Of a NIfTI-1 file of (side, side, n) int16 voxels."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, side, side, n, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 4, 16)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", head, 108, 352)
    head[344:348] = b"n+1\0"
    return bytes(head)


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (header(64, 64), QuarantineCode.HEADER_INVALID),
        (header(16384, 20), QuarantineCode.TOO_LARGE),
        (b"\0" * 400, QuarantineCode.NOT_NIFTI),
        (gzip.compress(header(64, 64) + np.random.default_rng(0).bytes(2000), mtime=0), QuarantineCode.HEADER_INVALID),
        (gzip.compress(b"text " * 500, mtime=0), QuarantineCode.NOT_NIFTI),
    ],
    ids=["more than its header says", "a header over the limit", "zeros", "gzip, more than its header says", "gzip"],
)
def test_a_huge_object_is_judged_by_its_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, code: QuarantineCode
) -> None:
    """A3: 11 GiB, of which next to nothing is read."""
    path = tmp_path / "x.nii"
    path.write_bytes(start)
    os.truncate(path, 11 * 2**30)
    read: list[int] = []
    whole = StoredObject.read

    def counted(self: StoredObject, start: int | None = None, end: int | None = None) -> bytes:
        assert end is not None, "read whole"
        read.append(end)
        return whole(self, start, end)

    monkeypatch.setattr(StoredObject, "read", counted)
    [content] = read_all(tuple(list_archive(str(tmp_path)).items())).values()
    assert refusal(content).code == code
    assert sum(read) <= START_BYTES


def test_an_object_that_does_not_fit_the_memory_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: for that volume alone."""
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_bytes(name.encode())
    whole = StoredObject.read

    def short_of_memory(self: StoredObject, start: int | None = None, end: int | None = None) -> bytes:
        if self.uri.endswith("a.nii"):
            raise MemoryError
        return whole(self, start, end)

    monkeypatch.setattr(StoredObject, "read", short_of_memory)
    contents = read_all(tuple(list_archive(str(tmp_path)).items()))
    assert refusal(contents["a.nii"]).code == QuarantineCode.TOO_LARGE
    assert contents["b.nii"] == b"b.nii"


def test_an_object_is_the_one_that_it_was_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 5: one that is written to all the time is refused; one that was replaced is taken as it is now."""
    path = tmp_path / "x.nii"
    path.write_bytes(b"before")
    objects = tuple(list_archive(str(tmp_path)).items())
    path.write_bytes(b"afterwards")
    rows: list[dict[str, Any]] = [asdict(item) for item in objects]
    [(row, content)] = _with_contents(rows, Limits())
    assert content == b"afterwards"
    assert row["size_bytes"] == len(b"afterwards")
    whole = StoredObject.read

    def written_meanwhile(self: StoredObject, start: int | None = None, end: int | None = None) -> bytes:
        data = whole(self, start, end)
        path.write_bytes(data + b".")
        return data

    monkeypatch.setattr(StoredObject, "read", written_meanwhile)
    [content] = read_all(objects).values()
    assert refusal(content).code == QuarantineCode.CHANGED_WHILE_READING


def test_keys_that_were_seen_in_the_wild(shared_data: Path, tmp_path: Path) -> None:
    """A1, on disk: brackets and spaces."""
    keys = json.loads((shared_data / "faults" / "s3_keys.json").read_text())
    for key in keys:
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(key.encode())
    assert read_all(tuple(list_archive(str(tmp_path)).items())) == {key: key.encode() for key in keys}


@pytest.mark.s3
def test_storage_options_travel_with_the_stages(
    s3: Callable[[str], str], s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else tells another process where the server is, and who asks."""
    archive = s3("options")
    Location(archive).write("a.nii", b"no volume")
    (item,) = list_archive(archive).items()
    tally = Mock(is_stopping=lambda: False)
    monkeypatch.setattr(read_stage, "Tally", lambda *_: tally)
    monkeypatch.setattr(read_stage, "surviving", lambda rows, contents, _: contents(rows))
    monkeypatch.setattr(uris, "_given", {})
    use_options({"endpoint_url": s3_server, "key": "test", "secret": "test"}, others=[archive])
    options, stage = given_options(), pickle.dumps(ReadStage(SliceRecipe(), (32,), Limits(), None))
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    filesystems._s3_session.cache_clear()  # it remembers credentials
    uris._given.clear()
    (row,) = pickle.loads(stage).run(_source(item))
    assert row["code"].to_pylist() == ["not_nifti"]
    uris._given.clear()
    assert "a.nii" in hash_all([item], options)
    filesystems._s3_session.cache_clear()


@pytest.mark.parametrize("read_before", [0, 1, 3])
def test_a_run_that_stops_opens_nothing_more(read_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.nii", "b.nii", "c.nii"):
        (tmp_path / name).write_bytes(b"no volume")
    source = pa.concat_tables(_source(item) for item in list_archive(str(tmp_path)).items())
    opened: list[str] = []

    def steady(row: dict[str, Any], _: Limits) -> Content:
        opened.append(row["volume_id"])
        return b"no volume"

    monkeypatch.setattr(read_stage, "_steady", steady)
    monkeypatch.setattr(read_stage, "Tally", lambda *_: Mock(is_stopping=lambda: len(opened) >= read_before))
    monkeypatch.setattr(read_stage, "surviving", lambda rows, contents, _: contents(rows))
    rows = pa.concat_tables(ReadStage(SliceRecipe(), (32,), Limits(), None).run(source))
    assert opened == ["a.nii", "b.nii", "c.nii"][:read_before]
    assert rows["volume_id"].to_pylist() == ["a.nii", "b.nii", "c.nii"]
    assert rows["code"].to_pylist() == ["not_nifti"] * read_before + ["stopped"] * (3 - read_before)


def _source(item: ArchiveObject) -> pa.Table:
    row = asdict(item)
    return pa.Table.from_pylist([{name: row.get(name) for name in SOURCE.names}], schema=SOURCE)


def test_hidden_tags_do_not_leave_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would lie in the journal, and after a killed run for good."""
    from tests.series_tree import write_phantom_series

    write_phantom_series(tmp_path / "s1", 1)
    monkeypatch.setattr(read_stage, "Tally", lambda *_: Mock(is_stopping=lambda: False))
    monkeypatch.setattr(read_stage, "surviving", lambda rows, contents, _: contents(rows))
    (item,) = list_archive(str(tmp_path)).items()
    hidden = frozenset({"subject", "StudyDate"})
    (row,) = ReadStage(SliceRecipe(), (32,), Limits(), None, hidden=hidden).run(_source(item))
    found = dict(row["found"][0].as_py())
    assert "modality" in found
    assert not hidden & found.keys()
