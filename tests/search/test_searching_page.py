"""The Python blocks of docs/searching.md run, in order, on synthetic stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")
NAMES = ("case.nii.gz", "one.nii.gz", "patient7/ct.nii.gz", "two.nii.gz")  # that the page asks with


def test_the_python_of_the_page_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    volume_maker: Callable[..., Any],
    store_maker: Callable[..., Any],
) -> None:
    from tests.search.conftest import ledger_row

    volumes = volume_maker(12)
    named = [replace(volume, volume_id=name) for volume, name in zip(volumes, NAMES, strict=False)]
    modalities = ("CT", "MRI", "CT", "MRI")
    rows = [
        ledger_row(name, subject=name, modality=modality, organ="liver")
        for name, modality in zip(NAMES, modalities, strict=True)
    ]
    store_maker(tmp_path / "STORE", tuple(named), ledger=rows)
    store_maker(tmp_path / "STORE2", volumes[4:])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(block, found)
    printed = capsys.readouterr().out
    assert "1 one.nii.gz" in printed or "1 two.nii.gz" in printed
    assert [len(hits) for hits in found["answers"]] == [4, 4]
    assert f"('{tmp_path}/STORE', 'case.nii.gz')" in printed
