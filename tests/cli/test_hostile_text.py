"""E4: labels, names and reasons come from outside; no output obeys them."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from medret.pipeline.result import Reporter
from medret.terminal import Terminal
from medret.visible import FORMULA, csv_text, visible
from tests.search.conftest import ledger_row, make_store, recipe_of, synthetic_volumes

EVIL = "\x1b]0;owned\x07\x1b[31m[red]:warning:\r\u202e\x9b2J\nsecond"
FORMULAE = ('=HYPERLINK("http://x","y")', "+1", "-1+1", "@SUM(A1)", "\t=1", " =1")
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    volumes = tuple(
        replace(volume, volume_id=f"{EVIL}/[bold]{number:02d}.nii")
        for number, volume in enumerate(synthetic_volumes(12))
    )
    rows = [
        ledger_row(
            volume.volume_id,
            subject=f"{EVIL}{number}",
            modality=("CT", "MRI")[number % 2] + EVIL,
            body_region="=region" + EVIL,
            organ=(FORMULAE[0], EVIL)[number % 2],
            content_sha256=f"{number // 2:064x}",
            shards=[(recipe_of().digest, "shard-0")],
        )
        for number, volume in enumerate(volumes)
    ]
    bad = ledger_row(f"{EVIL}bad", status="quarantined", code="not_nifti", reason=EVIL)
    return make_store(tmp_path_factory.mktemp("store"), volumes, aggregations=("mean",), ledger=[*rows, bad])


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "STORE", "VOLUME"],
        ["search", "STORE", EVIL],
        ["search", "STORE", "VOLUME", "--where", EVIL],
        ["search", "STORE", "VOLUME", f"--{EVIL}"],
        ["search", "STORE", f"{EVIL}bad"],
        ["search", "STORE", "VOLUME", "--mode", "late", "--html", "FILE"],
        ["evaluate", "STORE", "--min-relevant", "1", "--index", "exact", "--html", "FILE"],
        ["duplicates", "STORE", "--at-least", "0.2"],
        ["study", "aggregation", "STORE", "--min-relevant", "1", "--draws", "1"],
        ["snapshots", "STORE"],
        ["verify", "STORE"],
        ["plan", "ARCHIVE", "STORE"],
    ],
    ids=lambda arguments: visible(" ".join(arguments[:4]))[:40],
)
def test_terminals_show_it(
    store: Any, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """E4."""
    archive = tmp_path / f"archive{EVIL}"
    archive.mkdir()
    (archive / f"{EVIL}.nii").write_bytes(b"")
    names = {"STORE": store.uri, "VOLUME": store.ids[0], "FILE": str(tmp_path / "page.html"), "ARCHIVE": str(archive)}
    main([names.get(one, one) for one in arguments])
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert not OBEYED.findall(captured.out + captured.err)
    assert not re.search("^second", captured.out + captured.err, re.MULTILINE)
    if arguments[0] == "search" and arguments[2] == "VOLUME" and "--where" not in arguments and len(arguments) < 4:
        assert "[red]:warning:" in captured.out  # as it was written, neither red nor a picture
        rows = [line for line in captured.out.splitlines() if r"\x1b]0;owned" in line]
        assert len(rows) == 1 + 10  # the query, and each hit on one line


def test_tables_of_figures_are_not_run(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """E4: `evaluate --csv` wrote =HYPERLINK(...) as it was."""
    path = tmp_path / "figures.csv"
    assert main(["evaluate", store.uri, "--min-relevant", "1", "--index", "exact", "--csv", str(path), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    cells = [cell for row in csv.reader(path.open(newline="")) for cell in row]
    assert f"'{FORMULAE[0]}" in cells
    assert not any(cell.startswith(FORMULA) and not re.fullmatch(r"-?[\d.e-]+", cell) for cell in cells)
    assert not any(OBEYED.search(cell) for cell in cells)


def test_cells_and_numbers() -> None:
    rows = list(csv.reader(io.StringIO(csv_text(["=a", "b"], [[text, -0.5] for text in FORMULAE]))))
    assert rows[0] == ["'=a", "b"]
    assert all(not row[0].lstrip().startswith(FORMULA) and row[1] == "-0.5" for row in rows[1:])


def test_visible_keeps_what_can_be_read() -> None:
    for text in ("Prüfung/ä é", "頭部CT", "مخ", "a\\b [x] :smile:", "👩\u200d⚕️"):
        assert visible(text) == text
    assert visible("a\nb\x1b\u202e\udc80") == r"a\nb\x1b\u202e\udc80"


def test_every_console_is_the_careful_one(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().print(EVIL)
    Reporter().say(EVIL)
    captured = capsys.readouterr()
    assert captured.out == captured.err == visible(EVIL) + "\n"
