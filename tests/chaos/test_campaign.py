"""A short campaign; `make chaos` runs the whole one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POINTS = "both:3"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_runs_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos.campaign", "--points", POINTS, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["differences"] == []
    assert report["embedded_twice"] == 0
    assert report["kills"] == 2
