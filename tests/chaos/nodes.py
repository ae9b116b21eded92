"""Lose nodes of a cluster without notice, and see that a run ends as if nothing had been.

    python -m tests.chaos.nodes [--points a:reading,driver:writing] [--folder DIR]        (make chaos)

A head without CPUs and two worker nodes, all on this machine, with token authentication. At each point, one worker node
is killed: a or b, before the first block, while reading, embedding or writing, or while indices are built. Of three
nodes, two can be lost in one run: a:embedding+b:indices. The run must end with exit code 0, with the vectors, index
files and counts of an undisturbed one (DIR/store of DIR/archive, made here if it does not exist), and tell of each loss
in one line. At the points of the driver, it gets SIGTERM, and must end with exit code 1 and one line, and give its
lease back.

All is timed by watching the store and the names of Ray's processes, so the product knows nothing of it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medret.snapshot import verify_store
from medret.snapshot.lease import refuse_if_held
from medret.storage import Location
from tests.chaos.campaign import command, count, make_archive, same
from tests.processes import family

MOMENTS = ("before", "reading", "embedding", "writing", "indices")
POINTS = [f"{who}:{moment}" for moment in MOMENTS for who in ("a", "b", "driver")]
WORKER: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 120 * 2**20}
POLL_S = 0.05  # a look at all processes takes some milliseconds from the run
RUN_S = 300.0
DECLARED_S = 90.0  # for Ray to declare a killed node dead


def main() -> int:
    """Run the campaign; 0 if every run ended as the undisturbed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", default=",".join(POINTS), help="which, with commas between (default: all)")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    # Sockets of Ray lie in the temporary folder: its path must be short.
    with tempfile.TemporaryDirectory(prefix="mr", ignore_cleanup_errors=True) as short:
        folder = arguments.folder or Path(short)
        calm = folder / "store"
        os.environ["RAY_TMPDIR"] = short
        Path(short, "ray").mkdir()
        from ray.cluster_utils import Cluster  # reads the environment when it is imported

        head = {"num_cpus": 0, "object_store_memory": 120 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        points = [[part.partition(":")[::2] for part in point.split("+")] for point in arguments.points.split(",")]
        nodes = {name: cluster.add_node(**WORKER) for name in "abc"[: 1 + max(map(len, points))]}
        try:
            bad = []
            if not calm.exists():
                make_archive(folder / "archive")
                bad += run(cluster, folder, calm.name, [])["problems"]
            for point in points:
                told = "+".join(map(":".join, point))
                losses = [(nodes.get(name), moment) for name, moment in point]
                found = run(cluster, folder, told.replace(":", "-"), losses)
                lost = [name for name, _ in point if name in nodes]
                if point is not points[-1]:
                    nodes |= {name: cluster.add_node(**WORKER) for name in lost}
                    cluster.wait_for_nodes(timeout=DECLARED_S)  # the next run must not see this one's nodes die
                if lost and not found["problems"]:
                    found["problems"] = [f"other {what}" for what in same(folder / found["name"], calm)]
                said = "; ".join(found["problems"]) or ("as undisturbed" if lost else "stopped well")
                print(f"{told:>21}  {found['seconds']:.0f} s  {said}", flush=True)
                bad += found["problems"]
        finally:
            cluster.shutdown()
    print(json.dumps({"points": len(points), "problems": bad}))
    return 1 if bad else 0


def run(cluster: Any, folder: Path, name: str, losses: Sequence[tuple[Any, str]]) -> dict[str, Any]:
    """A run into a store of its own. losses: the node that it loses at a moment; None, where it is told to stop."""
    store, began = folder / name, time.monotonic()
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(folder / "archive", store), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for node, moment in losses:
        while process.poll() is None and time.monotonic() - began < RUN_S and not is_due(store, moment):
            time.sleep(POLL_S)
        if node is not None:
            cluster.remove_node(node, allow_graceful=False)
        elif process.poll() is None:
            process.terminate()
    try:
        _, errors = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    stopped = any(node is None for node, _ in losses)
    code, line = (1, "medret index: stopped by SIGTERM") if stopped else (0, "lost node")
    problems = []
    if process.returncode != code:
        problems.append(f"exit code {process.returncode}: {errors[-2000:]}")
    elif [told[: len(line)] for told in errors.splitlines()] != [line] * len(losses):
        problems.append(f"said {errors[:2000]!r}")
    refuse_if_held(Location(store))  # raises if the lease was not given back
    problems += [str(finding) for finding in verify_store(Location(store))] if process.returncode == 0 else []
    return {"name": name, "problems": problems, "seconds": time.monotonic() - began}


def is_due(store: Path, moment: str) -> bool:
    """Whether a run has come to a moment, or was so fast that it passed it."""
    if moment == "writing":
        return count(store, "journal", 0) >= 2
    if moment == "indices":
        return count(store, "indices", 0) >= 1
    if count(store, "journal", 0):
        return True
    names = [name for name in family(os.getpid()).values() if name.startswith("ray::")]
    if moment == "before":
        return any("StageCounter" in name for name in names)
    if moment == "reading":
        return any("ReadStage" in name for name in names)
    return any("EmbedStage" in name and "__init__" not in name and "." in name.partition("))")[2] for name in names)


if __name__ == "__main__":
    sys.exit(main())
