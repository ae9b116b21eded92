"""What leaves with every answer, who may ask without tokens, what is logged, and how long a server waits."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from medret.serve import LiveStores, ServeSettings, Service, create_app, endpoints, volumes
from medret.serve.access import AuditLog, Tokens
from medret.serve.app import HEAD_BYTES, ImpatientProtocol, listening, server_config
from tests.serve.test_hidden import TOKEN, token_file

VOLUME = "chest_ct/0.nii.gz"
BASE = "http://127.0.0.1"


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/healthz", "/metrics", "/v1/snapshot", "/v1/volumes/none", "/nowhere",
             f"/v1/volumes/{VOLUME}/slices/axial/3.png", "/page/icon.svg", "/v1/volumes?limit=x"]
)  # fmt: skip
def test_every_answer_has_the_headers_of_a_careful_server(client: TestClient, path: str) -> None:
    answer = client.get(path)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers
    assert "set-cookie" not in answer.headers
    kept = answer.headers["cache-control"]
    if path.endswith(".png"):
        assert kept.startswith("private")
        assert answer.headers["vary"] == "Authorization"
    else:
        assert kept == ("no-store" if path.startswith(("/v1", "/metrics", "/nowhere")) else "no-cache")
    if answer.status_code >= 400:
        assert set(answer.json()) == {"code", "reason"}


def test_without_tokens_only_this_machine_and_its_own_pages_ask(client: TestClient) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "127.0.0.9:1"):
        assert client.get("/v1/snapshot", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200, host
    for host in (
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1:8000",
        "",
        "127.0.0.1.nip.io",
        "[::2]",
        "[",
        "a@b",
    ):
        answer = client.get("/v1/snapshot", headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "wrong_host"), host
    for origin in ("http://evil.example", "null", "http://localhost:1", ""):
        answer = client.post(
            "/v1/search", json={"volume": VOLUME}, headers={"Host": "localhost:8000", "Origin": origin}
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "wrong_origin"), origin


def test_text_of_requests_and_stores_stays_text(client: TestClient) -> None:
    script = "<script>alert(1)</script>"
    for path in (f"/v1/volumes/{script}", f"/v1/volumes?where={script}", f"/v1/volumes?limit={script}", f"/{script}"):
        answer = client.get(path)
        assert answer.status_code in (404, 422)
        assert answer.headers["content-type"] == "application/json"
    answer = client.get("/v1/volumes/x%0d%0aSet-Cookie:%20a=b%0d%0a%0d%0a<b>")
    assert answer.status_code == 404
    assert "set-cookie" not in answer.headers


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def audited(live: LiveStores, tmp_path: Path) -> Any:
    log = AuditLog(tmp_path / "audit.jsonl")
    tokens = Tokens(token_file(tmp_path / "tokens.toml", where="modality = 'CT'"))
    service = Service(live, ServeSettings(device="cpu"), tokens=tokens, audit=log)
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client, tmp_path / "audit.jsonl"
    log.close()


def test_each_request_is_a_line_that_says_who_asked_what_and_was_shown_what(audited: Any, archive: Path) -> None:
    client, path = audited
    hits = client.post("/v1/search", json={"volume": VOLUME, "where": "organ = 'Lung'", "k": 2}).json()["hits"]
    client.get("/v1/volumes", params={"contains": 'ct\n{"caller": "x"}\u2028'})
    client.get(f"/v1/volumes/{VOLUME}/slices/axial/3.png?side=32")
    client.get("/v1/volumes/head_mri/0.nii.gz")
    client.get("/v1/snapshot", headers={"Authorization": "Bearer no"})
    client.get("/healthz")
    data = (archive / VOLUME).read_bytes()
    client.post("/v1/slices", files={"file": ("Doe^Jane.nii.gz", data)})
    search, listed, picture, hidden, unknown, upload = _lines(path)
    assert search["asked"] == {"volume": VOLUME, "where": "organ = 'Lung'", "k": 2}
    assert search["shown"] == [hit["volume_id"] for hit in hits]
    assert (search["caller"], search["method"], search["path"]) == ("site A", "POST", "/v1/search")
    assert search["status"] == 200
    assert search["snapshots"]
    assert listed["query"]["contains"].startswith("ct\n")
    assert picture["shown"] == [VOLUME]
    assert (hidden["status"], hidden["shown"]) == (404, [])
    assert (unknown["status"], unknown["caller"]) == (401, "")
    from medret.volume import content_sha256

    assert upload["uploads"] == [content_sha256(data)]
    assert "Doe" not in path.read_text(), "a file's name may be that of a patient"
    assert TOKEN not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_logged_is_not_answered(audited: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, path = audited
    write = os.write

    def full(file: int, data: bytes) -> int:
        return write(file, data[:10]) if b'"caller"' in data else write(file, data)

    monkeypatch.setattr(os, "write", full)
    answer = client.get("/v1/volumes")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_audit")
    assert "chest_ct" not in answer.text
    monkeypatch.undo()
    assert client.get("/v1/volumes").status_code == 200
    assert json.loads(path.read_text().splitlines()[-1])["status"] == 200, "the line after a torn one is whole"


def test_a_log_that_was_moved_away_is_begun_again(audited: Any) -> None:
    client, path = audited
    client.get("/v1/snapshot")
    path.rename(path.with_suffix(".1"))
    client.get("/v1/volumes")
    assert [line["path"] for line in _lines(path)] == ["/v1/volumes"]
    assert [line["path"] for line in _lines(path.with_suffix(".1"))] == ["/v1/snapshot"]


def test_metrics_count_requests_stages_and_snapshots(make_app: Callable[..., FastAPI], live: LiveStores) -> None:
    with TestClient(make_app(), base_url=BASE) as client:
        for _ in range(3):
            client.post("/v1/search", json={"volume": VOLUME})
        client.get("/v1/volumes/none")
        client.get("/v1/volumes/some/other")
        client.get("/nowhere/at/all")
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = {(each.name, tuple(sorted(each.labels.items()))): each.value for f in families for each in f.samples}

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    assert value("medret_requests_total", method="POST", route="/v1/search", status="200") == 3
    assert value("medret_requests_total", method="GET", route="/v1/volumes/{volume_id:path}", status="404") == 2
    assert value("medret_requests_total", method="GET", route="other", status="404") == 1
    assert value("medret_stage_seconds_count", stage="search") == 5
    assert value("medret_stage_seconds_count", stage="wait") == 5
    snapshots = live.current.snapshots
    (contents,) = snapshots.corpus.stores
    assert value("medret_open_snapshot", store=contents.uri, snapshot=contents.id) == 1
    assert value("medret_volumes") == 7
    assert value("medret_uploads", state="active") == 0


def test_a_mistake_is_told_to_the_log_and_not_to_the_caller(
    make_app: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(endpoints, "described", failing)
    with TestClient(make_app(), base_url=BASE) as client:
        answer = client.get(f"/v1/volumes/{VOLUME}")
    assert (answer.status_code, answer.json()["code"]) == (500, "failed")
    assert "secret" not in answer.text
    assert "a secret" in caplog.text


def test_a_request_that_takes_too_long_is_given_up_and_its_thread_keeps_its_place(
    make_app: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, calls = threading.Event(), []
    described = volumes.described

    def slow(*arguments: Any) -> Any:
        calls.append(1)
        assert go_on.wait(60)
        return described(*arguments)

    monkeypatch.setattr(endpoints, "described", slow)
    app = make_app(request_seconds=0.1, threads=1)
    with TestClient(app, base_url=BASE) as client:
        for _ in range(2):
            answer = client.get(f"/v1/volumes/{VOLUME}")
            assert (answer.status_code, answer.json()["code"]) == (503, "too_slow")
            assert "retry-after" in answer.headers
        assert len(calls) == 1, "the second had no thread"
        go_on.set()
        while app.state.service.threads.borrowed_tokens:
            threading.Event().wait(0.005)
        assert client.get(f"/v1/volumes/{VOLUME}").status_code == 200
        assert len(calls) == 2, "the one that was given up while it waited never began"


def test_more_requests_than_the_server_takes_are_sent_away(make_app: Callable[..., FastAPI]) -> None:
    with TestClient(make_app(in_flight=0), base_url=BASE) as client:
        answer = client.get("/v1/snapshot")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/healthz").status_code == 200


@pytest.fixture(scope="module")
def impatient(live: LiveStores) -> Any:
    """The address of a server that waits 0.3 s for a head, configured as `medret serve` configures it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImpatientProtocol, "head_seconds", 0.3)
        config = server_config(Service(live, ServeSettings(device="cpu")), "127.0.0.1", 0)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            yield listening.getsockname()
            server.should_exit = True
            thread.join(30)


def _until_closed(sending: socket.socket) -> bytes:
    received = b""
    while data := sending.recv(65536):
        received += data
    return received


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("after", "start"),
    [
        (False, b""),
        (False, b"GET / HT"),
        (False, b"GET / HTTP/1.1\r\nX: "),
        (False, b"\r\n"),
        (True, b"\r\n"),
        (True, b"G"),
    ],
)
def test_slow_heads_end_their_connection(impatient: Any, after: bool, start: bytes) -> None:
    with socket.create_connection(impatient, timeout=30) as sending:
        began = monotonic()
        if after:
            sending.sendall(REQUEST)
            assert sending.recv(65536).startswith(b"HTTP/1.1 200")
        sending.sendall(start)
        assert _until_closed(sending) == b""
        assert monotonic() - began < 4, "uvicorn itself closes idle connections after 5 s"


def test_an_endless_head_is_refused(impatient: Any) -> None:
    with socket.create_connection(impatient, timeout=30) as sending:
        sending.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES + 10))
        assert _until_closed(sending).startswith(b"HTTP/1.1 400")


def test_a_request_after_another_is_answered(impatient: Any) -> None:
    with socket.create_connection(impatient, timeout=30) as sending:
        for _ in range(3):
            sending.sendall(REQUEST)
            assert sending.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("unread", "dropped"), [([0, 0, 0], False), ([9, 9], True), ([9, 5, 9, 12], False), ([0, 70, 70], True)]
)
def test_a_connection_that_takes_nothing_is_dropped_and_a_slow_one_is_not(unread: list[int], dropped: bool) -> None:
    protocol: Any = object.__new__(ImpatientProtocol)
    sizes = iter(unread)
    aborted: list[int] = []
    looks: list[Any] = []
    protocol.transport = SimpleNamespace(get_write_buffer_size=lambda: next(sizes), abort=lambda: aborted.append(1))
    protocol.loop = SimpleNamespace(call_later=lambda _, look: looks.append(look))
    looks.append(protocol._look)
    for _ in unread:
        looks.pop()()
    assert bool(aborted) is dropped


def test_whoever_reads_nothing_is_dropped(live: LiveStores) -> None:
    config = server_config(Service(live, ServeSettings(device="cpu", upload_seconds=0.3)), "127.0.0.1", 0)
    assert config.limit_concurrency == 4 * 256
    [place] = listening("127.0.0.1", 0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    address, asked = place.getsockname(), 400
    with socket.create_connection(address, timeout=30) as asking:
        asking.sendall(asked * b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        threading.Event().wait(3)
        received = b""
        with suppress(ConnectionResetError):
            while chunk := asking.recv(1 << 20):
                received += chunk
    server.should_exit = True
    thread.join(timeout=30)
    assert received.count(b"HTTP/1.1 200") < asked


def test_a_host_is_listened_at_once_per_address_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    own = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    absent = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [absent, *own, *own])
    [one] = listening("localhost", 0)
    with one:
        assert one.getsockname()[1]
