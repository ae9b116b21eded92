"""Short campaigns over one archive; `make chaos` runs the whole ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from tests.chaos.campaign import change_archive, command, make_archive

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def campaign(name: str, points: str, folder: Path, *options: str) -> dict[str, Any]:
    """The report of a campaign that went well."""
    command = [sys.executable, "-m", f"tests.chaos.{name}", "--points", points, "--folder", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, and the store that a run has made of it after others were stopped by SIGTERM."""
    folder = tmp_path_factory.mktemp("stopped")
    assert campaign("signals", "imports,embedding+", folder)["problems"] == []
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """The same for one test."""
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def test_sigterm_ends_a_real_run_well(stopped: Path) -> None:
    """A13: Ray's own handler ended it with a trace, and lost what was in flight; so did a signal to the group."""
    assert (stopped / "store" / "CURRENT").exists()


def undisturbed(run: list[str]) -> None:
    """A run in this process, on the Ray that tests share: campaigns compare their stores with what it makes."""
    assert run[1:3] == ["-m", "medret"]
    assert main(run[3:]) == 0


def test_killed_runs_lose_nothing_and_repeat_nothing(folder: Path, ray_session: None) -> None:
    change_archive(folder / "archive")
    shutil.copytree(folder / "store", folder / "calm")
    undisturbed(command(folder / "archive", folder / "calm"))
    report = campaign("campaign", "both:3", folder)
    assert (report["differences"], report["embedded_twice"], report["kills"]) == ([], 0, 2)


def test_a_lost_node_costs_one_line_and_changes_nothing(folder: Path) -> None:
    """A4: the counter lay on the lost node; or Ray's logs came to the terminal, and repeated slices counted twice."""
    campaign("nodes", "a:embedding+b:indices", folder)


def test_a_cluster_at_rest_grows_loses_a_node_and_rests_again(tmp_path: Path, ray_session: None) -> None:
    from tests.chaos.elastic import of  # imports much of Ray

    make_archive(tmp_path / "archive", 150)
    undisturbed(of(tmp_path, "store"))
    campaign("elastic", "once", tmp_path)
