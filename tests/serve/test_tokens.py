"""Tokens: who is let in, until when, and what a file of them must be like."""

from __future__ import annotations

import hashlib
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from medret.cli import main
from medret.errors import UsageError
from medret.serve import LiveStores, ServeSettings, Service, create_app
from medret.serve.access import Tokens, make_token
from medret.serve.messages import Refused
from tests.serve.conftest import GOLDEN
from tests.serve.test_hidden import TOKEN, token_file


def _client(live: LiveStores, tokens: Tokens, token: str | None) -> TestClient:
    service = Service(live, ServeSettings(device="cpu"), tokens=tokens)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return TestClient(create_app(service), headers=headers)


WITH_DATA = ("/v1/snapshot", "/v1/volumes", "/v1/volumes/x", "/v1/volumes/x/slices/axial/0.png", "/v1/map",
             "/v1/options", "/metrics", "/v1/anything", "/anything", "/page", "//page/x", "/healthz/")  # fmt: skip


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], f"{TOKEN}x", "a b", "\x80"])
def test_without_a_token_of_the_file_there_is_no_data(live: LiveStores, tmp_path: Path, token: str | None) -> None:
    client = _client(live, Tokens(token_file(tmp_path / "tokens.toml")), None)
    headers = {} if token is None else {b"Authorization": f"Bearer {token}".encode("latin-1")}
    for path in WITH_DATA:
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for path in ("/v1/search", "/v1/slices"):
        assert client.post(path, content=b"x" * 100, headers=headers).status_code == 401
    assert client.get("/v1/snapshot", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/page/icon.svg"):
        assert client.get(path, headers=headers).status_code == 200, path


def test_a_restricted_token_sees_its_volumes_and_no_metrics(live: LiveStores, tmp_path: Path) -> None:
    tokens = Tokens(token_file(tmp_path / "tokens.toml", where="modality = 'MRI'"))
    client = _client(live, tokens, TOKEN)
    assert client.get("/v1/snapshot").json()["volumes"] == 4
    assert client.get("/metrics").status_code == 403
    whole = _client(live, Tokens(token_file(tmp_path / "all.toml", where=None)), TOKEN)
    assert whole.get("/v1/snapshot").json()["volumes"] == 7
    assert whole.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("expires", "at"),
    [
        ("2027-01-01", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2027-01-01T12:00:00", datetime(2027, 1, 1, 12, tzinfo=UTC)),
        ("2027-01-01T12:00:00+02:00", datetime(2027, 1, 1, 10, tzinfo=UTC)),
    ],
)
def test_a_token_is_valid_before_it_expires(tmp_path: Path, expires: str, at: datetime) -> None:
    tokens = Tokens(token_file(tmp_path / "tokens.toml", more=f"expires = {expires}"))
    header = f"Bearer {TOKEN}"
    assert tokens.caller(header, at.replace(year=2026)).name == "site A"
    with pytest.raises(Refused, match="token_expired"):
        tokens.caller(header, at)
    with pytest.raises(Refused, match="token_unknown"):  # nobody learns when another's token expired
        tokens.caller("Bearer other", at)


def test_the_file_is_read_again_when_it_changes(live: LiveStores, tmp_path: Path) -> None:
    path = token_file(tmp_path / "tokens.toml", where=None)
    client = _client(live, Tokens(path), TOKEN)
    assert client.get("/v1/snapshot").status_code == 200
    token_file(tmp_path / "new.toml", where=None, token="another").replace(path)
    assert client.get("/v1/snapshot").status_code == 401, "it is revoked"
    token_file(tmp_path / "new.toml", where="modality = 'MRI'").replace(path)
    assert client.get("/v1/snapshot").json()["volumes"] == 4, "it is let in again, and sees less"
    path.write_text("[[token]]\nname = ")
    refused = client.get("/v1/snapshot")
    assert (refused.status_code, refused.json()["code"]) == (503, "no_tokens")
    assert client.get("/healthz").status_code == 200
    path.unlink()
    assert client.get("/v1/snapshot").status_code == 503
    token_file(path, where=None)
    assert client.get("/v1/snapshot").status_code == 200


GOOD = "sha256 = '" + "a" * 64 + "'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[token]] entry"),
        ("[[token]\n", "line 1"),
        ("token = 1\n", "no [[token]] entry"),
        ("[[tokens]]\nname='x'\n", "'tokens'"),
        ("[[token]]\nname='x'\n", "entry 1 (x): sha256"),
        (f"[[token]]\n{GOOD}", "entry 1: name"),
        ("[[token]]\nname='x'\nsha256='ABC'\n", "entry 1 (x): sha256"),
        (f"[[token]]\nname='x'\n{GOOD}color='red'\n", "entry 1 (x): color"),
        (f"[[token]]\nname='x'\n{GOOD}expires='tomorrow'\n", "entry 1 (x): expires"),
        (f"[[token]]\nname='x'\n{GOOD}where=''\n", "entry 1 (x): where"),
        (f"[[token]]\nname='x'\n{GOOD}[[token]]\nname='y'\n{GOOD}", "entries 1 and 2 have the same sha256"),
        (f"[[token]]\nname='x'\n{GOOD}[[token]]\nname='x'\n{GOOD.replace('aaa', 'bbb')}", "the same name"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        Tokens(path)
    assert words in str(error.value).replace('"', "")
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_everyone_may_write_is_refused(tmp_path: Path) -> None:
    path = token_file(tmp_path / "tokens.toml")
    path.chmod(0o666)
    with pytest.raises(UsageError, match="chmod o-w"):
        Tokens(path)


def test_a_made_token_is_let_in_by_its_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--make-token", 'ward "3"']) == 0
    printed = capsys.readouterr()
    token = printed.err.split()[-1]
    path = tmp_path / "tokens.toml"
    path.write_text(printed.out)
    assert Tokens(path).caller(f"Bearer {token}").name == 'ward "3"'
    assert token not in printed.out
    assert hashlib.sha256(token.encode()).hexdigest() in printed.out
    assert len({make_token("x")[0] for _ in range(100)}) == 100
    for name in ("", "a\nb", "x" * 201):
        with pytest.raises(UsageError):
            make_token(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--host", "::"], "--token-file"),
        (["--host", "example.org"], "--token-file"),
        (["--token-file", "/nowhere/tokens.toml"], "cannot be read"),
        (["--audit", "/nowhere/audit.jsonl"], "cannot be written"),
    ],
)
def test_a_server_that_would_be_open_or_blind_does_not_start(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["serve", str(GOLDEN / "store"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_filter_that_fits_nothing_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for where in ("no_such_column = 'A'", "site ="):
        path = token_file(tmp_path / "tokens.toml", where=where)
        assert main(["serve", str(GOLDEN / "store"), "--token-file", str(path)]) == 2
        assert "token 'site A'" in capsys.readouterr().err


def test_a_store_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 2
    assert "STORE" in capsys.readouterr().err


def test_uploads_are_counted_for_each_caller(live: LiveStores, tmp_path: Path) -> None:
    queue: Any = Service(live, ServeSettings(queue=3, uploads_per_caller=1)).uploads
    with queue.place("a"), queue.place("b"):
        with pytest.raises(Refused, match="too_many_uploads"), queue.place("a"):
            raise AssertionError
        with queue.place("c"), queue.place("d"), pytest.raises(Refused, match="busy"), queue.place("e"):
            raise AssertionError
    with queue.place("a"):
        assert queue.waiting == 1
    assert queue.waiting == 0


def test_a_taken_port_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(GOLDEN / "store"), "--port", str(port)]) == 2
    assert f"--port {port} cannot be listened at" in capsys.readouterr().err
