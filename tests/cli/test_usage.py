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


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["index"], ["index", "a", "b", "--batch-size", "0"], ["search"]])
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
