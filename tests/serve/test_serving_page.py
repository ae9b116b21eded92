"""docs/serving.md: its examples run against a server, and what it says of options is so."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from medret.cli.main import _parser
from tests.serve.conftest import GOLDEN, Served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://localhost:8000"
CURLS = re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE)
OF_WORDS = [command for command in CURLS if '"text"' in command]


@pytest.fixture
def _in_a_folder_with_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(GOLDEN / "archive" / "chest_ct" / "1.nii.gz", tmp_path / "case.nii.gz")
    monkeypatch.chdir(tmp_path)


def parts(text: str) -> set[str]:
    """The paths below /v1 in a text, without ids and parameters."""
    return {re.split(r"[?/\"' ]", found)[0] for found in re.findall(r"/v1/(\S+)", text)}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.usefixtures("_in_a_folder_with_a_case")
def test_the_commands_of_the_page_are_answered(served: Served) -> None:
    assert parts(" ".join(CURLS)) == {"snapshot", "search", "volumes"}
    answers: list[Any] = []
    for command in (command for command in CURLS if command not in OF_WORDS):
        words = shlex.split(command.replace(ADDRESS, served.url))
        done = subprocess.run([*words, "--fail"], capture_output=True, check=True)
        answers.append(json.loads(done.stdout) if done.stdout else Path("slice.png").read_bytes()[:4])
    by_volume, by_file = answers[1], answers[2]
    assert len(by_volume["hits"]) == len(by_file["hits"]) == 3
    assert {row["labels"]["modality"] for row in answers[3]["volumes"]} == {"CT"}
    assert answers[5] == b"\x89PNG"
    [of_words] = (
        OF_WORDS  # the store has no model of this name; tests/pipeline/test_searching_with_words.py asks one that has
    )
    done = subprocess.run(shlex.split(of_words.replace(ADDRESS, served.url)), capture_output=True, check=True)
    assert json.loads(done.stdout)["reason"].startswith("model 'medsiglip' is not in snapshot")


@pytest.mark.usefixtures("_in_a_folder_with_a_case")
def test_the_python_of_the_page_runs(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(block.replace(ADDRESS, served.url), "docs/serving.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 chest_ct/1.nii.gz ")
    assert lines[3] == "['chest_ct/0.nii.gz', 'chest_ct/1.nii.gz']"
    assert lines[-1] == "422 wrong_request"


def test_the_defaults_of_the_page_are_those_of_the_command() -> None:
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", PAGE, re.MULTILINE)
    assert len(rows) == 5
    arguments = vars(_parser().parse_args(["serve", "store"]))
    for options, defaults in rows:
        names = [name.strip("`-").replace("-", "_") for name in options.split(", ")]
        assert [str(arguments[name]) for name in names] == defaults.split(", ")
