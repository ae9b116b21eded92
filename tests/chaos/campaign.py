"""Kill runs, again and again, and see that nothing is lost, nothing is made twice and nothing half-made is ever live.

    python -m tests.chaos.campaign [--points 24] [--seed 0] [--folder DIR]        (make chaos)

A store with a snapshot (DIR/store of DIR/archive, made here if it does not exist) gets an archive that has changed. One
run after the other is killed with SIGKILL, at points spread over the run; each goes on where the one before was killed.
After every kill the old snapshot must be live (the new one, if the kill came after the publication), `medret verify`
must pass, and no finished volume may be lost or made again. At the end the store must hold the vectors and index files
of an undisturbed run (DIR/calm; if it does not exist, the archive is changed and DIR/calm is made here).

Kills are timed by watching the store, so the product knows nothing of them. Points:
    time:S          the driver, S seconds after the start
    PLACE:N         the driver, when the run has written N files in a folder of the store: journal, embeddings, indices,
                    snapshots; or in `current`: when CURRENT is replaced
    raylet:N        Ray's raylet, when N journal entries were written
    workers:N       N processes of Ray's workers, one at a journal entry each; the run goes on by itself
    both:N          one of Ray's workers at the first journal entry, then the driver when N were written
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from medret.demo.phantoms import KINDS, write_phantom
from medret.embeddings import read_vectors
from medret.embeddings.parquet import read_parquet
from medret.snapshot import current_id, read_files, read_journal, read_ledger, read_manifest, verify_store
from medret.storage import Location
from tests.processes import family, reap

MODEL = "timm:test_vit"
SHAPE = (24, 22, 16)
GROUP = 2  # volumes a durable step: many steps, so many points
KNOWN, ADDED, CHANGED = 12, 26, 4
POLL_S = 0.005
RUN_S = 600.0
ATTEMPTS = 3


@dataclass
class Campaign:
    """A store under fire. finished: volumes that the journal has held, by their ids."""

    archive: Path
    store: Path
    old: str
    finished: set[str]
    kills: int = 0

    def command(self) -> list[str]:
        """One run."""
        return command(self.archive, self.store)


def command(archive: Path, store: Path) -> list[str]:
    """An index run of the campaign."""
    return [
        sys.executable, "-m", "medret", "index", str(archive), str(store), "--model", MODEL, "--weights",
        f"{MODEL}=random", "--slices", "uniform:2", "--shard-volumes", str(GROUP), "--actors", "1", "--json",
    ]  # fmt: skip


def make_archive(folder: Path, volumes: int = KNOWN) -> None:
    """The volumes that the store knows: small phantoms of all kinds."""
    kinds = list(KINDS)
    for number in range(volumes):
        write_phantom(folder / f"v{number:02d}.nii.gz", kinds[number % 6], number, shape=SHAPE)


def change_archive(folder: Path, added: int = ADDED) -> None:
    """Add, change, delete and rename."""
    kinds = list(KINDS)
    for number in range(added):
        write_phantom(folder / f"added{number:02d}.nii.gz", kinds[number % 6], 100 + number, shape=SHAPE)
    for number in range(CHANGED):
        write_phantom(folder / f"v{number:02d}.nii.gz", kinds[number % 6], 200 + number, shape=SHAPE)
    (folder / "v10.nii.gz").unlink()
    (folder / "v11.nii.gz").rename(folder / "renamed.nii.gz")


def settle(arguments: list[str], log: Path) -> dict[str, Any]:
    """A run that is left alone; what it printed. On a busy machine Ray may not come up in time: then once more."""
    for _ in range(ATTEMPTS):
        process = start(arguments, log)
        out, _ = process.communicate(timeout=RUN_S)
        reap(process.pid)
        if process.returncode == 0:
            found: dict[str, Any] = json.loads(out.decode().strip().splitlines()[-1])
            return found
    raise SystemExit(f"a run that was left alone ended with {process.returncode}; see {log}")


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A run in a session of its own."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as errors:
        return subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
        )


def count(store: Path, place: str, since_ns: int) -> int:
    """Whole files in a folder of the store that were written since; one that was there may be written again."""
    written = 0
    for folder, _, names in os.walk(store / place):  # it passes over folders that vanish meanwhile
        for name in names:
            try:
                written += name[0] != "." and (Path(folder) / name).stat().st_mtime_ns >= since_ns
            except FileNotFoundError:
                continue
    return written


def strike(campaign: Campaign, point: str, log: Path) -> dict[str, Any] | None:
    """Run until the point and kill; None, or what the run printed if it ended before."""
    place, _, number = point.partition(":")
    begun_ns = time.time_ns()
    process = start(campaign.command(), log)
    started, struck = time.monotonic(), 0
    workers = {"workers": float(number), "both": 1}.get(place, 0)
    while process.poll() is None:
        if struck < workers and count(campaign.store, "journal", begun_ns) > struck:
            struck += kill_a_worker(process.pid)
        elif place != "workers" and is_due(campaign, place, float(number), begun_ns, time.monotonic() - started):
            break
        time.sleep(POLL_S)
    campaign.kills += struck
    if process.poll() is not None:
        reap(process.pid)
        out = process.communicate()[0].decode().strip()
        return json.loads(out.splitlines()[-1]) if process.returncode == 0 else None
    if place == "raylet":
        for pid, name in family(process.pid).items():
            if name.split(" ")[0].endswith("/raylet"):
                os.kill(pid, signal.SIGKILL)
        time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    campaign.kills += 1
    reap(process.pid)
    return None


def is_due(campaign: Campaign, place: str, number: float, since_ns: int, passed_s: float) -> bool:
    """Whether a run has reached its point."""
    if place == "time":
        return passed_s >= number
    if place == "current":
        return current_id(Location(campaign.store)) != campaign.old
    return count(campaign.store, "journal" if place in ("raylet", "both") else place, since_ns) >= number


def kill_a_worker(session: int) -> int:
    """Kill one of Ray's workers, one that reads, embeds or writes if there is any; how many were killed."""
    workers = {pid: name for pid, name in family(session).items() if name.startswith("ray::")}
    busy = [pid for pid, name in workers.items() if "Map" in name] or list(workers)
    if not busy:
        return 0
    os.kill(random.choice(busy), signal.SIGKILL)
    return 1


def inspect(campaign: Campaign, point: str, *, ended: bool) -> None:
    """What must hold after every kill."""
    store = Location(campaign.store)
    live = current_id(store)
    published = live != campaign.old
    problems = [str(finding) for finding in verify_store(store)]
    if published and not ended and not point.startswith(("current", "snapshots")):
        problems.append(f"snapshot {live} is live, although the run was killed at {point}")
    journal = finished_volumes(campaign.store)
    if not published and not campaign.finished <= set(journal):
        problems.append(f"{len(campaign.finished - set(journal))} finished volumes were lost")
    if len(journal) != len(set(journal)):
        problems.append(f"{len(journal) - len(set(journal))} finished volumes were embedded again")
    campaign.finished |= set(journal)
    if problems:
        raise SystemExit(f"after {point}: " + "; ".join(problems))


def same(one: Path, other: Path) -> list[str]:
    """What differs between the live snapshots of two stores: vectors, index files, ledgers, counts."""
    found = []
    for uri in (one, other):
        store = Location(uri)
        live = current_id(store)
        assert live is not None
        manifest = read_manifest(store, live)
        files, ledger = read_files(store, live, manifest), read_ledger(store, live, manifest)
        shards = {row["volume_id"]: dict(row["shards"]) for row in ledger.to_pylist()}
        vectors: dict[tuple[str, str], bytes] = {}
        for row in files.filter(pc.is_in(files["kind"], pc.cast(["slices", "volumes"], "string"))).to_pylist():
            table = read_parquet(store.read(row["path"]))
            ids, rows = np.array(table["volume_id"].to_pylist()), read_vectors(table)
            for volume_id in dict.fromkeys(ids.tolist()):
                if shards.get(volume_id, {}).get(row["recipe"]) == row["shard"]:
                    vectors[volume_id, row["kind"]] = rows[ids == volume_id].tobytes()
        indices = {path for path in files["path"].to_pylist() if path.startswith("indices/")}
        content = dict(zip(ledger["volume_id"].to_pylist(), ledger["content_sha256"].to_pylist(), strict=True))
        found.append((vectors, indices, content, (manifest.counts, manifest.slices)))
    names = ("vectors", "index files", "contents", "counts")
    return [name for name, a, b in zip(names, *found, strict=True) if a != b]


def default_points(wanted: int, seed: int) -> list[str]:
    """Points spread over a run: times, every folder, every kind of process."""
    rng = random.Random(seed)
    fixed = [
        "time:0.5", "time:2", "time:5", "embeddings:1", "journal:1", "embeddings:3", "workers:2", "journal:2",
        "raylet:1", "journal:1", "embeddings:4", "workers:3", "indices:1", "indices:3", "indices:5", "indices:8",
        "snapshots:1", "snapshots:2", "snapshots:3", "current:1",
    ]  # fmt: skip
    late = [point for point in fixed if point.startswith(("indices", "snapshots", "current"))]
    early = [point for point in fixed if point not in late]
    while len(early) + len(late) < wanted:
        kind = rng.choice(["time", "embeddings", "journal", "indices"])
        number = f"{rng.uniform(1, 12):.1f}" if kind == "time" else str(rng.randint(1, 4))
        (late if kind == "indices" else early).append(f"{kind}:{number}")
    late.sort(key=lambda point: ("indices", "snapshots", "current").index(point.partition(":")[0]))
    if wanted >= len(fixed):
        return early + late
    step = len(fixed) / wanted
    return [fixed[int(number * step)] for number in range(wanted)]


def main() -> int:
    """Run the campaign; 0 if everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", default="24", help="how many, or which, with commas between (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    given = arguments.points
    points = default_points(int(given), arguments.seed) if given.isdigit() else given.split(",")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="medret-chaos-"))
    archive, store, calm, before = (folder / name for name in ("archive", "store", "calm", "before"))
    log = folder / "log"
    if not store.exists():
        make_archive(archive)
        settle(command(archive, store), log)
    shutil.copytree(store, before)
    if not calm.exists():
        change_archive(archive)
        shutil.copytree(store, calm)
        settle(command(archive, calm), log)
    old, new = current_id(Location(store)), current_id(Location(calm))
    assert old is not None
    assert new is not None
    embedded = read_manifest(Location(calm), new).counts.embedded
    campaign = Campaign(archive, store, old, set())
    random.seed(arguments.seed)
    final: dict[str, Any] | None = None
    for point in points:
        began = time.monotonic()
        final = strike(campaign, point, log)
        inspect(campaign, point, ended=final is not None)
        state = "ended by itself" if final else "killed"
        print(
            f"{point:>14}  {state}; {len(campaign.finished)} volumes finished; {time.monotonic() - began:.0f} s",
            flush=True,
        )
        if current_id(Location(store)) != old and point != points[-1]:
            shutil.rmtree(store)  # published: begin again, so that the further points have something to interrupt
            shutil.copytree(before, store)
            campaign.finished = set()
    kept = len(finished_volumes(store))
    last = settle(campaign.command(), log)
    differences = same(store, calm)
    twice = written(store, last) - (embedded - kept) if last["published"] else 0
    report = {"points": len(points), "kills": campaign.kills, "differences": differences, "embedded_twice": twice}
    print(json.dumps(report))
    if arguments.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if differences or twice else 0


def finished_volumes(store: Path) -> list[str]:
    """What the journal holds."""
    found: list[str] = read_journal(Location(store)).ledger["volume_id"].to_pylist()
    return found


def written(store: Path, found: dict[str, Any]) -> int:
    """Volumes that a run wrote: what the model was asked for, canaries left out."""
    stages = json.loads((store / found["report"]).read_text())["stages"]
    return int(stages.get("write", {"volumes": 0})["volumes"])


if __name__ == "__main__":
    sys.exit(main())
