from __future__ import annotations

import re
from pathlib import Path

import pytest

from medret.cli.demo import run_demo
from medret.demo.phantoms import KINDS
from medret.errors import UsageError
from medret.search import open_snapshot


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_demo_indexes_searches_and_names_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medret.demo.phantoms._varied", lambda _, shape: tuple(n // 2 for n in shape))  # less to paint
    run_demo(tmp_path / "demo", volumes_per_kind=2)
    said = capsys.readouterr().out
    page = tmp_path / "demo" / "page.html"
    assert str(page) in said, "the page's path stands there unbroken, to be copied"
    assert all(kind.organ in page.read_text(encoding="utf-8") for kind in KINDS.values())
    same, of = map(int, re.findall(r"(\d+) of the (\d+) hits", said)[0])
    assert of == 2 * len(KINDS)
    assert same >= 0.75 * of, "the default model tells the kinds of phantoms apart"
    snapshot = open_snapshot(str(tmp_path / "demo" / "store"))
    assert snapshot.manifest.counts.embedded == 2 * len(KINDS)
    assert not snapshot.manifest.recipes[0].random_weights


def test_demo_does_not_index_files_that_it_did_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medret.demo.phantoms._varied", lambda _, shape: tuple(n // 4 for n in shape))  # less to paint
    mine = tmp_path / "archive" / "mine.nii.gz"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"1 files that this demo did not make, such as mine\.nii\.gz"):
        run_demo(tmp_path, volumes_per_kind=1)
    assert mine.read_bytes() == b"precious"
