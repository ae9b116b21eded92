"""A real run over many tiny volumes: what the driver takes for each of them, and whether the store is right.

    python bench/many.py [--volumes N] [--folder FOLDER] [--json]

Makes phantoms of 32 x 32 x 32 voxels below FOLDER (those that are there stay), indexes one slice of each with a small
network with random weights, first of a few of them and then of all, and checks the store. What the driver's peak grows
by between the two runs, over their difference, is what a new volume takes. Its processor time is that of the whole
process until it writes its report: starting is part of it. FOLDER must hold no store yet.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from figures import Figure, Measured, main
from numpy.typing import NDArray

from medret import open_snapshot
from medret.snapshot import current_id, read_ledger, read_manifest
from medret.storage import Location

# The network gives 64 numbers, of which random weights use few. With two bits for each, LSH finds 0.93 of the ten
# nearest among 60,000 such volumes, and too few among 100,000 to be published; with eight, 0.998.
BITS = "512"
SMALL = (
    "--model", "timm:test_vit", "--weights", "timm:test_vit=random", "--slices", "uniform:1", "--lsh-bits", BITS,
)  # fmt: skip
SIDE = 32
PER_FOLDER = 1000
FEW = 64  # of the run that everything but the volumes is measured with
ASKED = 200
EQUAL = (
    1 - 1e-3
)  # the cosine of vectors that float16 may not tell apart: ten such hits are as good as the volume itself
MOST_CPU_MS, MOST_KB = 0.6, 1.5
LOAD = "Ray Data polls as long as a run takes: with less of a machine for itself, a volume costs the driver more"


def phantom(number: int) -> NDArray[np.int16]:
    """A plane wave of its own direction, length, phase and contrast, as int16: smooth, unlike all others."""
    rng = np.random.default_rng([7, number])
    direction = rng.standard_normal(3)
    steps = 2 * np.pi * rng.uniform(0.5, 3) * direction / np.linalg.norm(direction)
    x, y, z = (np.exp(1j * step * (np.arange(SIDE) + 0.5) / SIDE) for step in steps)
    wave = np.real(np.exp(2j * np.pi * rng.uniform()) * x[:, None, None] * y[:, None] * z)
    voxels: NDArray[np.int16] = (120 * (wave - wave.min()) / np.ptp(wave)).astype(np.int16) * np.int16(8)
    return voxels


def write_some(folder: Path, first: int, last: int) -> None:
    """Write the volumes of these numbers, a thousand to a folder."""
    for number in range(first, last):
        path = folder / f"{number // PER_FOLDER:04d}" / f"{number:07d}.nii.gz"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(phantom(number), np.diag([2, 2, 3, 1]))
        made = path.with_suffix(".part")
        made.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))
        made.rename(path)


def write_many(folder: Path, volumes: int) -> None:
    """Write so many volumes, with one process per core."""
    starts = range(0, volumes, PER_FOLDER)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        write = partial(write_some, folder)
        list(pool.map(write, starts, (min(volumes, start + PER_FOLDER) for start in starts)))


def run(archive: Path, store: Path) -> dict[str, Any]:
    """`medret index`, as a user runs it: its report, its counts and its seconds."""
    command = [sys.executable, "-m", "medret", "index", str(archive), str(store), *SMALL, "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise SystemExit(f"medret index failed: exit code {done.returncode}")
    path = max(store.joinpath("runs").glob("*.json"))
    report: dict[str, Any] = json.loads(path.read_text())
    return report | {"seconds": time.perf_counter() - started, "recall": json.loads(done.stdout)["recall_at_10"]}


def wrong(store: Path, archive: Path, volumes: int) -> list[str]:
    """What is not as it should be: in the ledger, in the indices, to `medret verify`."""
    found, location = [], Location(str(store))
    live = current_id(location)
    assert live is not None
    manifest = read_manifest(location, live)
    ledger = read_ledger(location, live, manifest, ["volume_id", "uri", "status", "slices", "shards"])
    ids = ledger["volume_id"].to_pylist()
    if ids != sorted(path.relative_to(archive).as_posix() for path in archive.rglob("*.nii.gz")) or len(ids) != volumes:
        found.append(f"the ledger does not have the {volumes} volumes of {archive}")
    if set(ledger["status"].to_pylist()) != {"embedded"} or set(ledger["slices"].to_pylist()) != {1}:
        found.append("not every volume is embedded with one slice")
    if any(uri != f"{manifest.archive_uri}/{name}" for uri, name in zip(ledger["uri"].to_pylist(), ids, strict=True)):
        found.append("a volume has another URI")
    if any(len(shards) != 1 for shards in ledger["shards"].to_pylist()):
        found.append("a volume is in no embedding shard, or in several")
    if {entry.rows for entry in manifest.indices} != {volumes}:
        found.append(f"an index has not {volumes} rows: {[entry.rows for entry in manifest.indices]}")
    asked = ids[:: max(1, volumes // ASKED)]
    snapshot = open_snapshot(str(store))
    for index in ("exact", "hnsw", "lsh"):
        answers = snapshot.search_many(asked, 10, index=index)
        lost = sum(
            name not in {hit.volume_id for hit in hits} and hits[-1].score < EQUAL
            for name, hits in zip(asked, answers, strict=True)
        )
        if lost:
            found.append(f"{index}: {lost} of {len(asked)} volumes do not find themselves")
    verified = subprocess.run([sys.executable, "-m", "medret", "verify", str(store)], check=False, stdout=sys.stderr)
    return [*found, *(["medret verify found faults"] if verified.returncode else [])]


def measured(arguments: argparse.Namespace) -> Measured:
    """Both runs and the check, in the folder that was named or in one that goes."""
    if arguments.tiny or arguments.folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return measured_in(Path(scratch), FEW if arguments.tiny else arguments.volumes)
    return measured_in(arguments.folder, arguments.volumes)


def measured_in(folder: Path, volumes: int) -> Measured:
    """Both runs, and the check of the store."""
    if any(folder.glob("store*")):
        raise SystemExit(f"{folder} holds a store: name another folder, or remove {folder}/store*")
    few, archive = folder / "few", folder / "archive"
    write_many(archive, volumes)
    large = run(archive, folder / "store")
    small = large
    if volumes > FEW:
        write_many(few, FEW)
        small = run(few, folder / "store-few")
    faults = wrong(folder / "store", archive, volumes)
    for fault in faults:
        print(fault, file=sys.stderr)
    grown = max(0.0, large["driver_peak_mib"] - small["driver_peak_mib"])
    new = f"{volumes:,} phantoms of {SIDE}^3, random weights"
    figures = [
        Figure("driver's processor time per volume", 1000 * large["driver_cpu_s"] / volumes, MOST_CPU_MS, new, False,
               "ms", why=LOAD),
        Figure("driver's memory per new volume", 1024 * grown / max(1, volumes - FEW), MOST_KB,
               f"the peak of a run of {FEW}", False, "KB"),
        Figure("faults in ledger, indices, store", float(len(faults)), 0, "read back, and medret verify", False),
        Figure("volumes per second while they are streamed", volumes / large["phases_s"]["stream"], None, new),
        Figure("lowest recall@10", min(large["recall"].values()), None, "exact search"),
    ]  # fmt: skip
    names = ("seconds", "phases_s", "driver", "driver_cpu_s", "driver_peak_mib", "recall")
    runs = {f"run_of_{n}": {name: found[name] for name in names} for n, found in ((FEW, small), (volumes, large))}
    return Measured(figures, runs | {"faults": faults, "load": os.getloadavg()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=100_000, help="to make and index (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="of archives and stores, kept (default: a temporary one)")
    main(measured, parser)
