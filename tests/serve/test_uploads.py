"""Uploaded files are searched with as files on disk are, within bounds, and nothing of them stays."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from medret.search import Snapshots, encoders
from medret.serve import endpoints, requests
from medret.volume import view_volume
from tests.dicom_phantoms import affine_of, single_frames, write
from tests.serve.conftest import Served, serving

VOLUME = "chest_ct/1.nii.gz"


def _post(client: Any, data: bytes, options: dict[str, Any] | None = None, path: str = "search", **more: Any) -> Any:
    files = [("file", ("case.nii.gz", data)), *more.pop("files", [])]
    given = {} if options is None else {"options": json.dumps(options)}
    return client.post(f"/v1/{path}", files=files, data=given, **more)


@pytest.fixture(scope="module")
def data(archive: Path) -> bytes:
    return (archive / VOLUME).read_bytes()


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 3, "mode": "late", "index": "exact"}, {"slices": "2:6", "where": "organ = 'Lung'"}, {"exclude": "self"}],
)
def test_a_file_finds_what_it_finds_on_disk(
    client: TestClient, snapshots: Snapshots, archive: Path, data: bytes, options: dict[str, Any]
) -> None:
    answer = _post(client, data, options).json()
    expected = snapshots.search(archive / VOLUME, **options)
    assert answer["hits"] == json.loads(json.dumps([hit.to_json() for hit in expected]))
    assert answer["query"] == "case.nii.gz"


def test_an_uncompressed_file_is_the_same_volume(client: TestClient, data: bytes) -> None:
    hits = [_post(client, each, {"index": "exact"}).json()["hits"] for each in (data, gzip.decompress(data))]
    assert [hit["volume_id"] for hit in hits[0]] == [hit["volume_id"] for hit in hits[1]]


def test_a_mask_narrows_the_query_as_its_box_does(client: TestClient, data: bytes) -> None:
    nib = pytest.importorskip("nibabel")
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    marks = np.zeros(image.shape, np.uint8)
    marks[4:12, 3:11, 2:7] = 1
    mask = nib.Nifti1Image(marks, image.affine).to_bytes()
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S"), "the box below is in this order"
    by_mask = _post(client, data, {"index": "exact"}, files=[("mask", ("mask.nii", mask))]).json()
    by_box = _post(client, data, {"index": "exact", "box": "4:11,3:10,2:6"}).json()
    assert by_mask == by_box
    refused = _post(client, data, files=[("mask", ("mask.nii", mask[:200]))])
    assert (refused.status_code, refused.json()["code"]) == (422, "truncated")
    assert refused.json()["reason"].startswith("mask: ")
    both = _post(client, data, {"box": "4:11,3:10,2:6"}, files=[("mask", ("mask.nii", mask))])
    assert both.status_code == 422


def test_a_series_is_searched_with_as_parts_and_as_a_zip(client: TestClient, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 1500, (16, 14, 8)).astype(np.int16)
    write(tmp_path, single_frames(voxels, affine_of()))
    paths = sorted(tmp_path.iterdir())
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as bundle:
        for path in paths:
            bundle.write(path, path.name)
    parts = [("file", (path.name, path.read_bytes())) for path in paths]
    as_parts = client.post("/v1/search", files=parts, data={"options": '{"index": "exact"}'}).json()
    as_zip = _post(client, zipped.getvalue(), {"index": "exact"}).json()
    assert len(as_parts["hits"]) == 7
    assert as_parts["hits"] == as_zip["hits"]
    assert as_parts["query"] == f"{paths[0].name} and {len(paths) - 1} more"


def test_the_slices_of_a_file_are_shown(client: TestClient, snapshots: Snapshots, data: bytes) -> None:
    answer = _post(client, data, path="slices").json()
    expected = snapshots.corpus.index(snapshots.corpus.recipe(None), None).slices_of((VOLUME, 0))
    assert expected is not None
    assert expected.slice_indices is not None
    assert answer["planes"] == {"axial": expected.slice_indices.tolist()}
    view = view_volume(data, snapshots.recipe().slices, modality="CT")
    assert answer["shape"] == list(view.shape)
    assert len(answer["pictures"]) == len(expected.slice_indices)
    for each in answer["pictures"]:
        head, _, text = each["image"].partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            drawn = view.draw(each["plane"], each["slice_index"], image_size=256)
            assert np.array_equal(np.asarray(picture), drawn)


def test_names_that_are_paths_are_names(client: TestClient, data: bytes) -> None:
    for name, shown in (("../../etc/passwd", "passwd"), ("C:\\a\\b.nii.gz", "b.nii.gz"), ("<b>\u202e.nii", None)):
        answer = client.post("/v1/search", files=[("file", (name, data))]).json()
        assert answer["query"] == (shown or "<b>\\u202e.nii"), name


def _announcing(gib: int) -> bytes:
    """A header that announces more voxels than there are bytes."""
    nib = pytest.importorskip("nibabel")
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1024, 1024, 1024 * gib))
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + bytes(100)


def _bomb() -> bytes:
    """A small volume whose gzip stream goes on for 40 MiB."""
    nib = pytest.importorskip("nibabel")
    image = nib.Nifti1Image(np.arange(4096, dtype=np.uint8).reshape(16, 16, 16), np.eye(4))
    return gzip.compress(image.to_bytes() + bytes(40 << 20), 1)


def _zip_bomb() -> bytes:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bundle, bundle.open("a", "w") as member:
        for _ in range(20):
            member.write(bytes(1 << 20))
    return zipped.getvalue()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"hello", "not_nifti"),
        (lambda data: data[:-100], "truncated"),
        (lambda data: gzip.decompress(data)[:-100], "truncated"),
        (lambda data: b"PAR1" + bytes(1000), "not_nifti"),
        (lambda data: b"PK\x03\x04" + bytes(1000), "bundle_corrupt"),
        (lambda data: _announcing(5), "too_large"),
        (lambda data: gzip.compress(_announcing(5)), "too_large"),
        (lambda data: _bomb(), "too_large"),
        (lambda data: _zip_bomb(), "too_large"),
    ],
)
def test_what_cannot_be_used_has_its_quarantine_code(
    make_app: Callable[..., FastAPI],
    data: bytes,
    make: Callable[[bytes], bytes],
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medret.volume.open._HEADERS_BYTES", 0)
    with TestClient(make_app(volume_bytes=16 << 20), base_url="http://127.0.0.1") as small:
        for path in ("search", "slices"):
            answer = _post(small, make(data), path=path)
            assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ([], "{}", "multipart"),
        ([("files", ("a", b"1"))], None, "part 'files'"),
        ([("mask", ("a", b"1"))], None, "no part 'file'"),
        ([("file", ("a", b"1"))], "{", "body"),
        ([("file", ("a", b"1"))], '{"volume": "x"}', "volume"),
        ([("file", ("a", b"1"))], '{"mask": "/etc/passwd"}', "mask"),
        ([("file", ("a", b"1"))], '{"k": -1}', "k"),
        ([("file", ("a", b"1")), ("mask", ("m", b"1")), ("mask", ("m", b"1"))], None, "two parts"),
    ],
)
def test_a_wrong_form_is_explained(client: TestClient, files: Any, options: str | None, words: str) -> None:
    answer = client.post("/v1/search", files=files, data={} if options is None else {"options": options})
    if not files:
        answer = client.post("/v1/search", content=b"{}", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 422
    assert words in answer.json()["reason"]


def test_a_body_that_breaks_off_is_refused(client: TestClient, data: bytes) -> None:
    request = httpx.Request("POST", "http://test/", files={"file": ("a.nii.gz", data)})
    answer = client.post(
        "/v1/search", content=request.read()[:-10], headers={"content-type": request.headers["content-type"]}
    )
    assert answer.status_code == 422
    assert "breaks off" in answer.json()["reason"]


def test_a_large_body_is_refused_by_its_announced_or_its_real_length(
    make_app: Callable[..., FastAPI], data: bytes
) -> None:
    with TestClient(make_app(upload_bytes=1000, body_bytes=1000), base_url="http://127.0.0.1") as small:
        request = httpx.Request("POST", "http://test/", files={"file": ("a.nii.gz", data)})
        body = request.read()
        for kind in (request.headers["content-type"], "application/json"):
            for content in (body, iter([body[:500], body[500:]])):
                answer = small.post("/v1/search", content=content, headers={"content-type": kind})
                assert (answer.status_code, answer.json()["code"]) == (413, "too_large_upload")


def test_uploads_wait_for_a_slot_and_too_many_are_sent_away(
    make_app: Callable[..., FastAPI], data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is encoded, one waits; a third of the same caller is refused, and then all is as before."""
    entered, go_on = threading.Event(), threading.Event()
    query_of = requests.query_of

    def held(*arguments: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return query_of(*arguments)

    monkeypatch.setattr(endpoints, "query_of", held)
    for per_caller, expected in ((2, (429, "too_many_uploads")), (9, (503, "busy"))):
        entered.clear()
        go_on.clear()
        app = make_app(queue=1, uploads_per_caller=per_caller)
        queue = app.state.service.uploads
        with serving(app) as server:
            with ThreadPoolExecutor(2) as pool:
                answers = [pool.submit(_post, _Plain(server.url), data) for _ in range(2)]
                assert entered.wait(60)
                while queue.active + queue.waiting < 2:
                    threading.Event().wait(0.005)
                refused = _post(server.client, data)
                assert (refused.status_code, refused.json()["code"]) == expected
                assert int(refused.headers["retry-after"]) > 0
                assert server.client.get("/v1/snapshot").status_code == 200, "others are answered meanwhile"
                go_on.set()
            assert [answer.result().status_code for answer in answers] == [200, 200]
            assert queue.active == queue.waiting == 0
            assert queue.refused == 1
            assert _post(server.client, data).status_code == 200


class _Plain:
    """A client of its own, for a thread."""

    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, path: str, **given: Any) -> httpx.Response:
        return httpx.post(f"{self._url}{path}", timeout=60, **given)


def test_a_slow_sender_is_told_so_and_leaves_its_place(make_app: Callable[..., FastAPI], data: bytes) -> None:
    go_on = threading.Event()

    def slowly() -> Any:
        yield b"--b\r\n"
        go_on.wait(60)

    app = make_app(upload_seconds=0.2)
    with serving(app) as server:
        for kind in ("multipart/form-data; boundary=b", "application/json"):
            answer = _answer_before_the_end(server, slowly(), {"content-type": kind})
            assert answer.startswith("HTTP/1.1 408")
            assert "too_slow" in answer
        go_on.set()
        assert app.state.service.uploads.waiting == 0


def _answer_before_the_end(server: Served, chunks: Any, headers: dict[str, str]) -> str:
    host, port = server.url.removeprefix("http://").split(":")
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    with socket.create_connection((host, int(port)), timeout=60) as sending:
        head = f"POST /v1/search HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000\r\n{''.join(lines)}\r\n"
        sending.sendall(head.encode() + next(chunks))
        return sending.recv(65536).decode()


def test_whoever_has_gone_is_not_encoded_for(
    make_app: Callable[..., FastAPI], data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on, calls = threading.Event(), threading.Event(), []
    query_of = requests.query_of

    def held(*arguments: Any) -> Any:
        calls.append(1)
        entered.set()
        assert go_on.wait(60)
        return query_of(*arguments)

    monkeypatch.setattr(endpoints, "query_of", held)
    app = make_app()
    queue = app.state.service.uploads
    with serving(app) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(_post, _Plain(server.url), data)
        assert entered.wait(60)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/search", files={"file": data}, timeout=httpx.Timeout(60, read=0.2))
        go_on.set()
        assert first.result().status_code == 200
        while queue.active + queue.waiting:
            threading.Event().wait(0.005)
        assert len(calls) == 1


def test_a_model_that_cannot_be_loaded_is_not_the_callers_fault(
    make_app: Callable[..., FastAPI], data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(make_app(weights={"timm:test_vit": "/nowhere/weights.pth"}), base_url="http://127.0.0.1") as asking:
        answer = _post(asking, data)
        assert (answer.status_code, answer.json()["code"]) == (503, "no_model")

    def without_torch(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(encoders, "load_encoder", without_torch)
    with TestClient(make_app(weights={"timm:test_vit": "/elsewhere"}), base_url="http://127.0.0.1") as asking:
        answer = _post(asking, data)
        assert (answer.status_code, answer.json()["code"]) == (503, "no_model")
        assert "medret[models]" in answer.json()["reason"]


def test_nothing_of_an_upload_is_on_disk_under_a_name(
    make_app: Callable[..., FastAPI], data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[list[Path]] = []
    query_of = requests.query_of

    def looking(*arguments: Any) -> Any:
        seen.append(list(tmp_path.iterdir()))
        return query_of(*arguments)

    monkeypatch.setattr(endpoints, "query_of", looking)
    with TestClient(make_app(), base_url="http://127.0.0.1") as asking:
        assert _post(asking, data).status_code == 200
        assert _post(asking, data[:-50]).status_code == 422
    assert seen == [[], []]
    assert not list(tmp_path.iterdir())
