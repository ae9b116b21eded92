"""Stop runs with SIGTERM at every stage, and see that each ends well and that the next one goes on.

    python -m tests.chaos.signals [--points imports,ray,...] [--folder DIR]        (make chaos)

A real `medret index` in a session of its own gets SIGTERM: alone, or (PLACE+) with everything in its process group, as
a shell or a supervisor sends it. It must end with exit code 1 and one line on standard error, give its lease back, and
leave no process and no folder of Ray behind. While it runs, it listens on loopback alone. At the end, one more run must
publish every volume.

Places: `imports` (medret has just begun to listen), `ray` (Ray is starting), `reading`, `embedding` (a group of volumes
is written), `indices` (an index file is there).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medret.snapshot import verify_store
from medret.snapshot.lease import refuse_if_held
from medret.storage import Location
from tests.chaos.campaign import KNOWN, command, count, make_archive
from tests.processes import family, is_alive, open_to_others

POINTS = ("imports", "ray+", "reading", "embedding+", "indices")
GONE_S = 10.0  # for the last processes of a run to be gone after it; a worker under load takes seconds
ENDED_S = 60.0
RUN_S = 300.0
LINE = "medret index: stopped by SIGTERM"


def main() -> int:
    """Run the campaign; 0 if every run ended well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", default=",".join(POINTS), help="which, with commas between (default %(default)s)")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mr", ignore_cleanup_errors=True) as short:
        folder = arguments.folder or Path(short)
        make_archive(folder / "archive")
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": short,
        }  # fmt: skip
        bad = []
        for point in arguments.points.split(","):
            found = stopped(folder, point, environment, Path(short))
            print(f"{point:>12}  {'; '.join(found) or 'stopped well'}", flush=True)
            bad += found
        last = subprocess.run(
            command(folder / "archive", folder / "store"),
            env=environment,
            capture_output=True,
            timeout=RUN_S,
            check=False,
        )
        result = json.loads(last.stdout) if last.returncode == 0 else {}
        if result.get("counts", {}).get("embedded") != KNOWN:
            bad.append(f"the run after them ended with {last.returncode}: {last.stderr.decode()[-500:]}")
        elif "embedding" in arguments.points and not result["resumed"]:
            bad.append("the run after them did not go on from where they ended")
        elif last.stderr:
            bad.append(f"the run after them said {last.stderr.decode()[-500:]}")
        elif verify_store(Location(folder / "store")):
            bad.append("the store is not sound")
    print(json.dumps({"points": len(arguments.points.split(",")), "problems": bad}))
    return 1 if bad else 0


def stopped(folder: Path, point: str, environment: dict[str, str], temporary: Path) -> list[str]:
    """Run until a point, send SIGTERM, and say what was wrong with how it ended."""
    place, group, store = point.rstrip("+"), point.endswith("+"), folder / "store"
    begun_ns = time.time_ns()
    process = subprocess.Popen(
        command(folder / "archive", store), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not is_due(process.pid, store, place, begun_ns):
        time.sleep(0.01)
    around = family(process.pid)
    outside = open_to_others(around)
    if process.poll() is None:
        (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=ENDED_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return [f"{point}: still there after {ENDED_S:g} s"]
    problems = [f"{point}: it was open to others at {address}" for address in outside]
    if process.returncode != 1:
        problems.append(f"{point}: exit code {process.returncode}")
    if len(errors.splitlines()) != 1 or not errors.startswith(LINE):
        problems.append(f"{point}: said {errors[-500:]!r}")
    refuse_if_held(Location(store))  # raises if the lease was not given back
    if (store / "CURRENT").exists():
        problems.append(f"{point}: published all the same")
    around.pop(process.pid, None)
    deadline = time.monotonic() + GONE_S
    while any(map(is_alive, around)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [name[:60] for pid, name in around.items() if is_alive(pid)]
    left += [str(path) for path in temporary.glob("medret-*")]
    return problems + ([f"{point}: left {left}"] if left else [])


def is_due(session: int, store: Path, place: str, since_ns: int) -> bool:
    """Whether a run has come to a place, or has passed it."""
    if place == "imports":
        return listens(session)
    written = {folder: count(store, folder, since_ns) for folder in ("journal", "indices")}
    if place == "indices" or written["indices"]:
        return written["indices"] > 0
    if place == "embedding" or written["journal"]:
        return written["journal"] > 0
    names = family(session).values()
    return any(("gcs_server" if place == "ray" else "ReadStage") in name for name in names)


def listens(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


if __name__ == "__main__":
    sys.exit(main())
