"""The documents name what is there."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from medret import schemas
from medret.cli.main import _parser
from medret.errors import QuarantineCode
from medret.index.rows import ROW_FILE
from medret.pipeline.request import GateLimits
from medret.vocabularies import LABEL_OF

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_module_tables_of_the_architecture_are_the_modules_first_lines() -> None:
    command = [sys.executable, str(ROOT / "docs/modules.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run: python docs/modules.py"


def test_architecture_names_no_module_that_is_gone() -> None:
    named = [word for word in read("docs/architecture.md").split("`")[1::2] if word.endswith(".py")]
    assert named
    assert not [name for name in named if not (ROOT / "medret" / name).exists() and not (ROOT / name).exists()]


@pytest.mark.parametrize(
    "fields",
    [
        schemas.SLICE_COLUMNS,
        schemas.VOLUME_COLUMNS,
        schemas.PREVIEWS,
        ROW_FILE,
        schemas.LEDGER,
        schemas.FILES,
        schemas.TOMBSTONES,
        schemas.QUARANTINE,
    ],
    ids=["slices", "volumes", "previews", "rows", "ledger", "files", "tombstones", "quarantine"],
)
def test_formats_describe_every_column(fields: object) -> None:
    text = read("docs/formats.md")
    names = [field.name for field in fields]  # type: ignore[attr-defined]  # a list of fields or a schema of them
    assert names
    assert not [name for name in names if f"`{name}`" not in text]


def test_every_tag_that_gives_a_label_is_listed() -> None:
    section = read("docs/dicom.md").partition("## Labels, and personal data")[2].partition("\n## ")[0]
    table = "".join(line for line in section.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`([A-Z]\w+)`", table)) == set(LABEL_OF)


def test_operations_explain_every_quarantine_code() -> None:
    text = read("docs/operations.md")
    assert not [code for code in QuarantineCode if f"| `{code}` |" not in text]


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        targets = [part.split(")")[0].split("#")[0] for part in path.read_text(encoding="utf-8").split("](")[1:]]
        local = [target for target in targets if target and "://" not in target]
        assert not [target for target in local if not (path.parent / target).exists()], path.name


def _commands(text: str) -> Iterator[list[str]]:
    """The medret commands in the indented lines of a document; a line that ends in a backslash goes on."""
    for line in re.sub(r"\\\n *", " ", text).splitlines():
        if line.startswith("    medret "):
            words = shlex.split(line, comments=True)[1:]
            stops = [words.index(word) for word in ("|", "&&", ">") if word in words]
            yield words[: min(stops, default=len(words))]


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda path: path.name
)
def test_commands_in_documents_can_be_given(path: Path) -> None:
    for command in _commands(path.read_text(encoding="utf-8")):
        with contextlib.suppress(SystemExit):
            _parser().parse_args(command)
            continue
        pytest.fail(f"medret {shlex.join(command)}")


def test_documented_limits_are_the_defaults() -> None:
    page = read("docs/operations.md").partition("## Before publication")[2].partition("\n## ")[0]
    told = {name.replace("-", "_"): float(value) for name, value in re.findall(r"`--([a-z-]+) ([\d.]+)`", page)}
    limits = asdict(GateLimits())
    assert told
    assert told.items() <= limits.items(), (told, limits)
