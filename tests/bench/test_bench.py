"""Every benchmark runs, at its smallest, and gives figures; how fast is no test's business."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
HELPERS = {
    "run", "figures", "corpus", "listing", "synthetic", "bare", "dreamsim_package", "retrieval", "large_store",
    "http_load", "totalsegmentator", "mirb3d", "whole",
}  # fmt: skip
SLOWEST = "job"  # begins first, so that the others run beside it
SCRIPTS = sorted(path.stem for path in BENCH.glob("*.py") if path.stem not in HELPERS)


def tiny_run(name: str, volumes: Path) -> subprocess.CompletedProcess[str]:
    script = BENCH / f"{name}.py"
    data = ["--data", str(volumes)] if '"--data"' in script.read_text() else []
    command = [sys.executable, str(script), *data, "--tiny", "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, phantom_archive: Path
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The runs of the scripts that are asked for, two at a time: starting takes most of their time, on one core."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    own = [item.name for item in items if item.parent is request.node]
    with ThreadPoolExecutor(2) as pool:
        chosen = [name for name in SCRIPTS if any(f"[{name}]" in test for test in own)]
        yield {name: pool.submit(tiny_run, name, phantom_archive) for name in sorted(chosen, key=SLOWEST.__ne__)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_tiny_run_gives_figures(name: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    done = runs[name].result()
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document["benchmark"] == name
    assert document["figures"]
    for figure in document["figures"]:
        assert math.isfinite(figure["measured"])
        assert figure["measured"] >= 0
        assert figure["against"]
