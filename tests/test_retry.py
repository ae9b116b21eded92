"""Requests that fail for a moment are repeated, with growing pauses and a cap, and counted."""

from __future__ import annotations

import errno
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from medret.errors import StorageError
from medret.storage import Location
from medret.storage import filesystems as retry
from medret.storage.filesystems import ATTEMPTS, is_transient, retries, with_retries


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("medret.storage.filesystems.time.sleep", slept.append)
    return slept


class Flaky:
    """Fails a few times, then gives 1."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return 1


def test_passing_errors_are_repeated_with_growing_pauses(pauses: list[float]) -> None:
    before = retries()
    operation = Flaky(OSError(errno.EBUSY, "Please reduce your request rate."), ATTEMPTS - 1)
    assert with_retries(operation) == 1
    assert retries() - before == len(pauses) == ATTEMPTS - 1
    assert pauses[0] < pauses[-1]
    assert max(pauses) <= 1.5 * retry.LONGEST_PAUSE_S


def test_the_cap_ends_it(pauses: list[float]) -> None:
    operation = Flaky(ConnectionResetError("reset by peer"), 99)
    with pytest.raises(ConnectionResetError):
        with_retries(operation)
    assert operation.calls == ATTEMPTS


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), OSError(28, "full"), ValueError("x")])
def test_what_will_not_pass_is_not_repeated(error: Exception, pauses: list[float]) -> None:
    assert not is_transient(error)
    operation = Flaky(error, 99)
    with pytest.raises(type(error)):
        with_retries(operation)
    assert operation.calls == 1
    assert pauses == []


@pytest.fixture
def moody_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """An S3 that answers from a list of statuses, 200 when it is used up."""
    answers: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answers.pop(0) if answers else 200
            body = b"content" if status == 200 else b"<Error><Code>SlowDown</Code></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"0"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield answers
    server.shutdown()


@pytest.mark.s3
def test_a_busy_s3_is_asked_again_and_counted(moody_s3: list[int]) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    moody_s3 += [503, 500, 200, 503]
    before = retries()
    assert Location("s3://bucket/store").read("x") == b"content"
    assert retries() - before == 3
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medret.storage.objects.os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device; check"):
        Location(tmp_path).compare_and_swap("CURRENT", None, b"x")
