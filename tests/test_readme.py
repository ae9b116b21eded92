"""The README's Python blocks run, in order, on phantoms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_python_of_the_readme_runs(
    phantom_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nifti").symlink_to(phantom_archive)
    (tmp_path / "labels.csv").symlink_to(phantom_archive.parent / "labels.csv")
    (tmp_path / "case.nii.gz").symlink_to(phantom_archive / "head_mri" / "head_mri_0.nii.gz")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {})
    printed = capsys.readouterr().out
    for part in ("12 volumes", "nothing to do", "1 head_mri/head_mri_0.nii.gz", "mode 'nearest'", "modality"):
        assert part in printed


def test_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) < 150
    assert not [line for line in lines if len(line) > 100 and not line.startswith("    make ")]
