"""The wheel that `make dist` builds holds the package, its types and its templates, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    package = {path for path in (ROOT / "medret").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    held = {name for name in names if ".dist-info/" not in name}
    assert held == {path.relative_to(ROOT).as_posix() for path in package}
    assert "medret/py.typed" in held
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    heavy = {"faiss-cpu", "faiss-gpu", "nibabel", "ray", "torch"}
    assert not heavy & {line.removeprefix("Requires-Dist: ").split(">")[0].split("[")[0] for line in needed}
