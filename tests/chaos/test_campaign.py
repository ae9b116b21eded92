"""Short campaigns over one archive; `make chaos` runs the whole ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medret.cli import main
from medret.snapshot import current_id
from medret.storage import Location
from tests.chaos.campaign import (
    CHANGED,
    Campaign,
    change_archive,
    command,
    finished_volumes,
    inspect,
    make_archive,
    same,
    strike,
    written,
)

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def campaign(name: str, points: str, folder: Path, *options: str) -> dict[str, Any]:
    """The report of a campaign that went well."""
    command = [sys.executable, "-m", f"tests.chaos.{name}", "--points", points, "--folder", str(folder), *options]
    quick = os.environ | {"RAY_health_check_period_ms": "1000"}  # a lost node is noticed in 5 s, not in 15
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590, check=False, env=quick)
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


@pytest.fixture
def run(ray_session: None, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], dict[str, Any]]:
    """Run a campaign's command in this process, on the Ray that tests share; gives what it printed."""

    def call(words: list[str]) -> dict[str, Any]:
        assert words[:3] == [sys.executable, "-m", "medret"]
        assert main(words[3:]) == 0
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return call


def test_killed_runs_lose_nothing_and_repeat_nothing(folder: Path, run: Callable[..., dict[str, Any]]) -> None:
    """Ray's worker is killed at the first finished group, the driver at the third; then a run goes on and ends."""
    archive, store, calm = (folder / name for name in ("archive", "store", "calm"))
    change_archive(archive, added=8)
    shutil.copytree(store, calm)
    embedded = run(command(archive, calm))["counts"]["embedded"]
    assert embedded == 8 + CHANGED
    old = current_id(Location(store))
    assert old is not None
    fired = Campaign(archive, store, old, set())
    assert strike(fired, "both:3", folder / "log") is None, "it ended before it was killed"
    inspect(fired, "both:3", ended=False)
    assert fired.kills == 2
    kept = len(finished_volumes(store))
    assert kept >= 3
    last = run(command(archive, store))
    assert same(store, calm) == []
    assert written(store, last) == embedded - kept


def test_a_lost_node_costs_one_line_and_changes_nothing(folder: Path) -> None:
    """A4: the counter lay on the lost node; or Ray's logs came to the terminal, and repeated slices counted twice."""
    campaign("nodes", "a:embedding+b:indices", folder)


def test_a_cluster_at_rest_grows_loses_a_node_and_rests_again(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    from tests.chaos.elastic import of  # imports much of Ray

    make_archive(tmp_path / "archive", 150)
    run(of(tmp_path, "store"))
    campaign("elastic", "once", tmp_path)
