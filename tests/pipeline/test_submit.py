"""A submitted job on two `ray start` nodes of this machine, token authentication on."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medret.snapshot import verify_store
from medret.storage import Location
from tests.processes import reap

ROOT = Path(__file__).parents[2]
MODEL = "efficientnet_lite0"
START_S = 120

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two nodes of one CPU each; gives the job server's address and the environment that holds the token."""
    folder = tmp_path_factory.mktemp("cluster")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    port, dashboard, *agents = _free_ports(4)
    unwanted = ("RAY_ADDRESS", "RAY_BACKEND_LOG_LEVEL", "RAY_AUTH_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    shared = ["--block", "--num-cpus=1", "--object-store-memory=200000000", "--node-ip-address=127.0.0.1"]
    # Ray's sockets live below the temporary folder, whose path must be short.
    with tempfile.TemporaryDirectory(prefix="mr", ignore_cleanup_errors=True) as short:
        head = [f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={short}", "--head"]
        nodes = [
            _start(
                ["ray", "start", *head, *shared, f"--dashboard-agent-listen-port={agents[0]}"],
                environment,
                folder / "head",
            )
        ]
        try:
            _wait_for(lambda: _open(dashboard), nodes[0], folder / "head")
            join = [f"--address=127.0.0.1:{port}", f"--dashboard-agent-listen-port={agents[1]}"]
            nodes.append(_start(["ray", "start", *join, *shared], environment, folder / "worker"))
            _wait_for(lambda: "Ray runtime started" in (folder / "worker").read_text(), nodes[1], folder / "worker")
            yield SimpleNamespace(address=f"http://127.0.0.1:{dashboard}", environment=environment)
        finally:
            for node in nodes:  # the agents of a node outlive it, and keep a core busy
                reap(node.pid)
                node.wait()


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if ready():
            return
        time.sleep(0.5)
    pytest.fail(f"a node did not start:\n{log.read_text()}")


def submit(cluster: SimpleNamespace, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--address", cluster.address, "--working-dir", ".", "--"]
    environment = {**cluster.environment, **changed}
    return subprocess.run(
        [*command, "python", "jobs/index.py", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def test_submitted_job_gives_the_vectors_of_a_local_run(
    cluster: SimpleNamespace,
    phantom_archive: Path,
    store: Path,
    tmp_path: Path,
    opened: Callable[[str | Path], Any],
) -> None:
    options = ["--labels", str(phantom_archive.parent / "labels.csv"), "--slices", "uniform:8"]
    done = submit(cluster, str(phantom_archive), str(tmp_path / "there"), *options, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'"embedded": 12\b', done.stdout)
    [report] = (tmp_path / "there" / "runs").glob("*.json")
    assert json.loads(report.read_text())["cluster"]["cpus"] == 2.0
    assert verify_store(Location(tmp_path / "there")) == []
    there, here = opened(tmp_path / "there").vectors(MODEL), opened(store).vectors(MODEL)
    assert there.keys() == here.keys()
    for volume_id, vectors in here.items():
        np.testing.assert_array_equal(vectors, there[volume_id])


def test_without_the_token_nothing_is_submitted(cluster: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text(secrets.token_hex(32))
    done = submit(cluster, "archive", str(tmp_path / "s"), RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong"))
    assert done.returncode != 0
    assert "unauthenticated" in (done.stdout + done.stderr).lower() or "token" in (done.stdout + done.stderr).lower()
    assert not (tmp_path / "s").exists()
