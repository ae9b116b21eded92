"""Wrong usage: exit code 2 and one clear line, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medret.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["index", "{tmp}/nowhere", "{tmp}/s"], "nowhere"),
        (["index", "{tmp}", "{tmp}/s", "--model", "resnet51"], "resnet51"),
        (["index", "{tmp}", "{tmp}/s", "--slices", "some"], "uniform:N"),
        (["index", "{tmp}", "{tmp}/s", "--aggregation", "median"], "gaussian:CENTRE,SIGMA"),
        (["index", "{tmp}", "{tmp}/s", "--window", "hand"], "soft_tissue"),
        (["index", "{tmp}", "{tmp}/s", "--weights", "dinov2"], "NAME=PATH"),
        (["index", "{tmp}", "{tmp}/s", "--weights", "dinov2=x"], "models of this run"),
        (["index", "{tmp}", "{tmp}/s", "--labels", "{tmp}/none.csv"], "none.csv"),
        (["index", "{tmp}", "{tmp}"], "a place of its own"),
        (["index", "{tmp}", "{tmp}/s", "--model", "dinov2", "--model", "dinov2"], "distinct"),
        (["search", "{tmp}/nowhere", "x.nii.gz"], "nowhere"),
        (["search", "{tmp}", "x", "--model", "dinov2=heavy"], "NAME=WEIGHT"),
        (["search", "{tmp}", "x", "--aggregation", "mean", "--aggregation", "mean=2"], "a second time"),
        (["verify", "{tmp}/nowhere"], "nowhere"),
        (["gc", "{tmp}/nowhere"], "no store is there"),
        (["unlock", "{tmp}/nowhere"], "no store is there"),
        (["forget", "{tmp}/nowhere", "v"], "no store is there"),
        (["rollback", "{tmp}/nowhere", "x"], "no store is there"),
        (["export", "{tmp}", "."], "no snapshot"),
        (["index", "{tmp}", "s3://"], "names no place"),
        (["index", "{tmp}", "{tmp}/s", "--gpus-per-actor", "2"], "at most 1"),
        (["index", "{tmp}", "{tmp}/s", "--exclude", "\udce9*"], "not UTF-8 text"),
    ],
)
def test_one_clear_line(
    arguments: list[str], told: str, tmp_path: Path, phantom_archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.nii.gz").write_bytes(next(phantom_archive.rglob("*.nii.gz")).read_bytes())
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.startswith("medret ")
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nosuch"], ["index"], ["index", "a", "b", "--batch-size", "0"], ["search"],
        ["serve", "s", "--port", "65536"],
        ["serve", "s", "--device", "mps"], ["gc", "s", "--older-than", "9999999999w"], ["gc", "s", "--older-than", "7"],
    ],
)  # fmt: skip
def test_argparse_mistakes_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: medret" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "--help"]) == 0
    text = capsys.readouterr().out
    for taught in ("examples:", "s3://", "--labels", "exit codes:", "uniform:N", "quarantine"):
        assert taught in text


def test_search_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--help"]) == 0
    text = capsys.readouterr().out
    for taught in ("examples:", "modes:", "filters:", "--slices 40:58", "--mask", "--exclude", "late", "results"):
        assert taught in text


def test_help_and_import_load_neither_ray_nor_torch() -> None:
    script = (
        "import sys, medret\n"
        "from medret.cli import main\n"
        "main(['--help']); main(['search', '--help'])\n"
        "medret.open_snapshot\n"
        "print(sorted({'ray', 'torch', 'timm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_models_lists_names_and_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    text = capsys.readouterr().out
    for name in ("dinov1", "dinov2", "dreamsim", "swin", "resnet50", "efficientnet_lite0"):
        assert f'"{name}"' in text


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "medret models: interrupted\n"),
        (BrokenPipeError(), 1, ""),
        (OSError(28, "No space left on device"), 1, "No space left on device; check the path"),
    ],
)
def test_what_ends_a_command_is_one_line(
    raised: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(_: object) -> int:
        raise raised

    monkeypatch.setattr("medret.cli.scan.run_models", failing)
    assert main(["models"]) == code
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == bool(told)


def test_who_interrupts_a_writer_learns_what_is_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medret.snapshot.removal.gc", interrupted)
    assert main(["gc", str(tmp_path)]) == 130
    assert "`medret snapshots STORE` says what is live" in capsys.readouterr().err


@pytest.mark.parametrize(("outputs", "code"), [(">&- 2>&-", 0), (">/dev/full", 1), ("2>&1 | head -c1 >/dev/null", 0)])
def test_outputs_that_take_nothing_cause_no_traceback(outputs: str, code: int) -> None:
    command = ["sh", "-c", f'"$0" -m medret models --json {outputs}', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
