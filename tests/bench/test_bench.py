"""Every benchmark runs, at its smallest, and gives figures; how fast is no test's business."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
HELPERS = {"run", "figures", "corpus", "listing", "synthetic", "bare", "dreamsim_package", "retrieval"}
SCRIPTS = sorted(path.stem for path in BENCH.glob("*.py") if path.stem not in HELPERS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_tiny_run_gives_figures(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), "--tiny", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document["benchmark"] == name
    assert document["figures"]
    for figure in document["figures"]:
        assert math.isfinite(figure["measured"])
        assert figure["measured"] >= 0
        assert figure["against"]
