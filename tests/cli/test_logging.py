"""What a command logs: nothing unless asked, lines with -v, and one JSON object per line with --log-json."""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from medret.cli.shared import JsonLines, logging_to_stderr, report
from medret.pipeline.result import Reporter
from medret.storage.filesystems import with_retries


def flaky() -> str:
    if not flaky.__dict__.setdefault("failed", False):
        flaky.__dict__["failed"] = True
        raise ConnectionResetError("reset")
    return "bytes"


def test_a_library_is_silent_and_its_user_hears_retries(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    flaky.__dict__.clear()
    assert with_retries(flaky) == "bytes"
    assert capsys.readouterr() == ("", "")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("medret.storage.filesystems", "WARNING")
    assert "attempt 1 of 4 failed" in record.getMessage()


def test_a_quiet_reporter_logs_what_another_prints(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medret")
    Reporter().say("one line")
    assert (capsys.readouterr().err, caplog.messages) == ("one line\n", [])
    quiet = Reporter(quiet=True)
    quiet.fields = {"run": "r1"}
    quiet.say("another")
    quiet.warn("a node is lost")
    assert capsys.readouterr().err == ""
    assert [(r.levelname, r.getMessage(), vars(r)["run"]) for r in caplog.records] == [
        ("INFO", "another", "r1"),
        ("WARNING", "a node is lost", "r1"),
    ]


def test_a_record_is_one_json_object_on_one_line() -> None:
    record = logging.makeLogRecord({"name": "medret.x", "levelname": "INFO", "msg": "two\nlines", "volume_id": "a.nii"})
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert list(line) == ["time", "level", "logger", "message", "volume_id"]
    assert (line["level"], line["message"], line["volume_id"]) == ("INFO", "two\nlines", "a.nii")


def test_log_json_makes_every_line_of_stderr_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "nowhere"), "--log-json"]) == 2
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["logger"]) == ("ERROR", "medret")
    assert line["message"].startswith("medret verify: ")
    assert main(["verify", str(tmp_path / "nowhere"), "-v"]) == 2
    assert capsys.readouterr().err.startswith("medret verify: ")
    assert not [handler for handler in logging.getLogger("medret").handlers if isinstance(handler.formatter, JsonLines)]


def test_a_run_that_finds_nothing_says_so_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "archive").mkdir()
    assert main(["index", str(tmp_path / "archive"), str(tmp_path / "store"), "--log-json"]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["run"]
    assert lines[0]["message"].startswith(f"run {lines[0]['run']}: index ")
    assert lines[-1]["level"] == "ERROR"


def test_a_server_logs_what_it_does_without_being_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(*_: object) -> None:
        logging.getLogger("medret.serve.live").info("opened another snapshot")

    monkeypatch.setattr("medret.serve.app.run_server", serve)
    assert main(["serve", str(Path(__file__).parents[1] / "golden" / "store")]) == 0
    assert "opened another snapshot" in capsys.readouterr().err


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_server_says_in_json_where_it_is(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(_: object, sockets: Any) -> None:
        for each in sockets:
            each.close()
        if interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", serve)
    store = str(Path(__file__).parents[1] / "golden" / "store")
    assert main(["serve", store, "--port", "0", "--log-json"]) == 0
    lines = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert any(re.search(r" at http://127\.0\.0\.1:[1-9]\d*/$", line) for line in lines)


def test_progress_is_no_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with logging_to_stderr(argparse.Namespace(verbose=0, log_json=True)):
        report("1/2")
    assert capsys.readouterr().err == ""
