"""Short campaigns; `make chaos` runs the whole ones."""

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


def campaign(name: str, points: str, folder: Path) -> None:
    command = [sys.executable, "-m", f"tests.chaos.{name}", "--points", points, "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_node_costs_one_line_and_changes_nothing(tmp_path: Path) -> None:
    """A4: the counter lay on the lost node; or Ray's logs came to the terminal, and repeated slices counted twice."""
    campaign("nodes", "a:embedding,b:indices", tmp_path)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_ends_a_real_run_well(tmp_path: Path) -> None:
    """A13: Ray's own handler ended it with a trace, and lost what was in flight; so did a signal to the group."""
    campaign("signals", "imports,embedding+", tmp_path)
