"""Run on a cluster that breathes: it rests at zero workers, grows while a run needs nodes, and loses some of them.

    python -m tests.chaos.elastic [--points calm,reclaimed] [--folder DIR] [--volumes N]        (make chaos)

At `calm`, a run begins at zero workers of at most three. It must end with exit code 0, have used more than one node, by
its report, and the workers must be gone soon afterwards. A cloud reclaims spot nodes: at `reclaimed`, a worker of some
age is killed at random every 20 seconds, and at `once`, the first one when the first volumes are written. The run must
end in the same way. Its vectors, counts, embedding files and index files must always be those of an undisturbed run on
one machine (DIR/store of DIR/archive, made here if it does not exist).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from medret.snapshot import verify_store
from medret.storage import Location
from tests.chaos.campaign import command, count, make_archive, same, settle
from tests.chaos.cloud import IDLE_S, Cluster, cluster

POINTS = ("calm", "reclaimed")
WORKERS = 3
RECLAIM_EVERY_S = 20.0
LIVES_S = 40.0  # at least; a worker that is killed before it has started helps nobody
POLL_S = 0.1
RUN_S = 1200.0  # a kill every 20 s costs a small machine most of its time: starting nodes takes it
GONE_S = 30.0
UNSEEN_S = 20.0  # a node that is killed so late may be missing from the report, which is written before the run ends


def main() -> int:
    """Run the campaign; 0 if every run ended well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", default=",".join(POINTS), help="which, with commas between (default %(default)s)")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--volumes", type=int, default=1500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mr", ignore_cleanup_errors=True) as short:
        folder = arguments.folder or Path(short)
        if not (folder / "store").exists():
            make_archive(folder / "archive", arguments.volumes)
            settle(of(folder, "store"), folder / "log")
        bad = []
        with cluster(WORKERS, {"CPU": 1}) as cloud:
            for point in arguments.points.split(","):
                found = run(cloud, folder, point)
                said = "; ".join(found["problems"]) or f"nodes: {found['nodes']}, reclaimed: {found['reclaimed']}"
                print(f"{point:>12}  {found['seconds']:.0f} s  {said}", flush=True)
                bad += found["problems"]
    print(json.dumps({"points": len(arguments.points.split(",")), "problems": bad}))
    return 1 if bad else 0


def of(folder: Path, store: str) -> list[str]:
    """The command of a run with at most one actor for each worker."""
    options = command(folder / "archive", folder / store)
    options[options.index("--actors") + 1] = f"1:{WORKERS}"
    options[options.index("--shard-volumes") + 1] = "16"
    return options


def run(cloud: Cluster, folder: Path, point: str) -> dict[str, Any]:
    """A run into a store of its own that begins at zero workers. What it was, and what is wrong."""
    store, began, reclaimed, seen = folder / point, time.monotonic(), 0, 0
    environment = cloud.environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    problems = [f"{len(cloud.workers())} workers were there before the run"] if cloud.workers() else []
    process = subprocess.Popen(
        of(folder, point), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    last, since = began, dict[int, float]()
    while process.poll() is None and time.monotonic() - began < RUN_S:
        workers, now = cloud.workers(), time.monotonic()
        since = {pid: since.get(pid, now) for pid in workers}
        seen = max(seen, len(workers))
        old = workers if point == "once" else [pid for pid in workers if now - since[pid] > LIVES_S]
        due = {
            "once": not reclaimed and count(store, "journal", 0) > 0,
            "reclaimed": time.monotonic() - last > RECLAIM_EVERY_S,
        }
        if old and due.get(point):
            with suppress(ProcessLookupError):
                os.kill(old[0] if point == "once" else random.choice(old), signal.SIGKILL)
            reclaimed, last = reclaimed + 1, time.monotonic()
        time.sleep(POLL_S)
    process.kill()
    _, errors = process.communicate()
    seconds = time.monotonic() - began
    if process.returncode:
        problems.append(f"exit code {process.returncode}: {errors[:2000]}")
        return {"problems": problems, "seconds": seconds, "nodes": seen, "reclaimed": reclaimed}
    [report] = (json.loads(path.read_text()) for path in (store / "runs").glob("*.json"))
    if len(report["nodes"]) < 2:
        problems.append(f"only {list(report['nodes'])} worked, of {seen} workers")
    lost = len(report["lost_nodes"])
    if lost not in (reclaimed, reclaimed - (time.monotonic() - last < UNSEEN_S)):
        problems.append(f"{reclaimed} nodes were reclaimed, and {lost} reported: {report['lost_nodes']}")
    if [line[:9] for line in errors.splitlines()] != ["lost node"] * lost:
        problems.append(f"said {errors[:2000]!r}")
    problems += [str(finding) for finding in verify_store(Location(store))]
    problems += [f"other {what}" for what in same(store, folder / "store")]
    if embeddings(store) != embeddings(folder / "store"):
        problems.append("other embedding files")
    ended = time.monotonic()
    while cloud.workers() and time.monotonic() - ended < IDLE_S + GONE_S:
        time.sleep(POLL_S)
    if left := cloud.workers():
        problems.append(f"{len(left)} workers are still there {IDLE_S + GONE_S:g} s after the run")
    return {"problems": problems, "seconds": seconds, "nodes": len(report["nodes"]), "reclaimed": reclaimed}


def embeddings(store: Path) -> set[str]:
    """The names of a store's embedding files, which are digests of their content."""
    return {path.name for path in (store / "embeddings").rglob("*.parquet")}


if __name__ == "__main__":
    sys.exit(main())
