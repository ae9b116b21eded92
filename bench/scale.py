"""Whether a volume costs the same in a large archive as in a small one, and what a run costs that finds nothing new.

    python bench/scale.py [--volumes N] [--objects N] [--rows N] [--json]

Phantoms of 12 x 12 x 8 voxels and a small network with random weights: what grows with the archive shows, not
the model. The cost of a volume is the difference between two runs over the difference of their volumes, so that what
starting costs is in neither; each run is the faster of two. Of a small archive much is read while the actors start, so
the smaller difference is that between a tenth and four tenths of the largest archive, not between a hundredth and a
tenth. The run that finds nothing
new lists an S3 endpoint on loopback (bench/listing.py) and compares with a ledger of as many volumes, made by repeating
the rows of a small one.

The driver's work on up to ten million volumes is measured without an archive and without vectors: listing and store are
made on the spot (bench/large_store.py), and each size has processes of its own. The cost of a row is again a difference
of two sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import listing
import nibabel as nib
import numpy as np
import pyarrow as pa
from figures import Figure, Measured, main
from msgspec.structs import replace

from medret.archive import list_archive
from medret.schemas import LEDGER
from medret.snapshot import current_id, publish, read_files, read_ledger, read_manifest
from medret.storage import Location

SMALL = ("--model", "timm:test_vit", "--weights", "timm:test_vit=random", "--slices", "uniform:1")
SHAPE = (12, 12, 8)
NOISE = "both differences are of runs that take half a minute to start, give or take some seconds"
ROWS = "what the driver keeps of each new volume: its plan, its ledger row, and what Ray holds of its block"
LISTING = "the server takes turns with medret on the same cores; on S3 itself its part of the time is another machine's"


def write_archive(folder: Path, volumes: int) -> None:
    """So many different volumes of int16, uncompressed, a thousand to a folder."""
    rng = np.random.default_rng(0)
    for number in range(volumes):
        path = folder / f"{number // 1000:04d}" / f"{number:06d}.nii"
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = rng.integers(0, 1000, SHAPE).astype(np.int16)
        nib.Nifti1Image(voxels, np.diag([2, 2, 3, 1])).to_filename(path)


def index(archive: str, store: Path, *options: str, **environment: str) -> tuple[float, dict[str, Any]]:
    """`medret index`, as a user runs it: its seconds, and what it printed."""
    command = [sys.executable, "-m", "medret", "index", archive, str(store), *options, "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, env=os.environ | environment)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"medret index failed: exit code {done.returncode}")
    return seconds, json.loads(done.stdout)


def report_of(store: Path) -> dict[str, Any]:
    """The report of the only run of a store."""
    [path] = store.joinpath("runs").glob("*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def sized_runs(sizes: list[int], repeats: int, scratch: Path) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds of the fastest run over archives of these sizes, and its report; all sizes in turn, in every round."""
    for size in sizes:
        write_archive(scratch / f"archive-{size}", size)
    best: dict[int, tuple[float, dict[str, Any]]] = {}
    for repeat in range(repeats):
        for size in sizes:
            store = scratch / f"store-{size}-{repeat}"
            spent, _ = index(str(scratch / f"archive-{size}"), store, *SMALL)
            if size not in best or spent < best[size][0]:
                best[size] = spent, report_of(store)
    return [best[size][0] for size in sizes], [best[size][1] for size in sizes]


def grow_ledger(store: Path, archive: str, environment: dict[str, str]) -> None:
    """Publish a snapshot whose ledger has a row for every object of `archive`, with the vectors of those it had."""
    os.environ.update(environment)
    location, listed = Location(store), list_archive(archive)
    live = current_id(location)
    assert live is not None
    manifest = read_manifest(location, live)
    rows, files = read_ledger(location, live, manifest).to_pylist(), read_files(location, live, manifest)
    repeated = [
        rows[number % len(rows)]
        | {"volume_id": item.volume_id, "uri": item.uri, "size_bytes": item.size_bytes}
        | {"etag": item.etag, "mtime": item.mtime}
        for number, item in enumerate(listed.items())
    ]
    counts = replace(manifest.counts, listed=len(repeated), embedded=len(repeated), new=0)
    kept = {name: getattr(manifest, name) for name in manifest.__struct_fields__ if name not in ("created", "tables")}
    fields = kept | {"parent": live, "counts": counts, "archive_uri": listed.archive_uri}
    gone = {row["volume_id"] for row in rows} - {row["volume_id"] for row in repeated}
    publish(location, pa.Table.from_pylist(repeated, schema=LEDGER), sorted(gone), files, **fields)


def rerun_s(objects: int, scratch: Path, store: Path | None) -> float:
    """Seconds of a run over many objects on S3 that finds nothing new. store: None makes one, of the default model."""
    options = () if store is None else SMALL
    if store is None:
        store = scratch / "store"
        write_archive(scratch / "archive", 6)
        index(str(scratch / "archive"), store)
    with listing.listing_server(objects) as address:
        environment = listing.ENVIRONMENT | {"AWS_ENDPOINT_URL": address}
        archive = f"s3://{listing.BUCKET}/nifti"
        grow_ledger(store, archive, environment)
        before = current_id(Location(store))
        seconds, found = index(archive, store, *options, **environment)
        if found["snapshot"] != before or found["counts"]["unchanged"] != objects:
            raise SystemExit(f"the run was to find nothing new, it found {found['counts']}")
        return seconds


def large_runs(sizes: list[int], new: int, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """What bench/large_store.py reports of each size: a run with nothing new, and one with `new` new volumes."""
    found: dict[str, list[dict[str, Any]]] = {"make": [], "idle": [], "daily": []}
    for size in sizes:
        folder = scratch / f"large-{size}"
        folder.mkdir()
        for command, *more in (("make", str(size)), ("idle",), ("daily", str(new))):
            script = str(Path(__file__).with_name("large_store.py"))
            words = [sys.executable, script, command, str(folder), *more]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
            found[command].append(json.loads(done.stdout))
        shutil.rmtree(folder)
    return found


def large_figures(found: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    """The bounds of issue 15, for the largest size."""
    idle, daily = found["idle"], found["daily"]
    rows, seconds = ([run[name] for run in idle] for name in ("rows", "seconds"))
    costs = np.diff(seconds) / np.diff(rows)
    made = f"{rows[-1]:,} synthetic ledger rows"
    return [
        Figure(f"run with nothing new, {rows[-1]:,} volumes", seconds[-1], 90, "a clock", False, "s"),
        Figure("its peak memory", idle[-1]["peak_mib"] / 1024, 6, made, False, "GiB"),
        Figure("its cost of a row", costs[-1] / costs[0] if len(costs) > 1 else 1.0, 1.1, "of fewer rows", False),
        Figure(
            f"{daily[-1]['new']:,} new among them, the driver's own work", daily[-1]["seconds"], 120, made, False, "s"
        ),
        Figure("what it writes", daily[-1]["written"] / 1e6, 100, made, False, "MB"),
        Figure("its peak memory", daily[-1]["peak_mib"] / 1024, None, made, False, "GiB"),
    ]


def measured(arguments: argparse.Namespace) -> Measured:
    """Archives of several sizes, and a run with nothing to do."""
    most, objects = (24, 3000) if arguments.tiny else (arguments.volumes, arguments.objects)
    sizes = [most] if arguments.tiny else [most // 100, most // 10, 4 * most // 10, most]  # tiny: compared with itself
    with tempfile.TemporaryDirectory() as scratch:
        seconds, reports = sized_runs(sizes, 1 if arguments.tiny else 2, Path(scratch))
        spent = np.divide(seconds, sizes) if arguments.tiny else np.diff(seconds) / np.diff(sizes)
        small, large = spent[[max(-2, -len(spent)), -1]].tolist()
        peaks = [report["driver_peak_mib"] for report in reports]
        steps = [1000] if arguments.tiny else [arguments.rows // 100, arguments.rows // 10, arguments.rows]
        found = large_runs(steps, 100 if arguments.tiny else 10_000, Path(scratch))
        rerun = rerun_s(objects, Path(scratch), Path(scratch) / f"store-{sizes[0]}-0" if arguments.tiny else None)
    phantoms, tenth = "phantoms, random weights", min(1, len(sizes) - 1)
    figures = [
        Figure(
            f"cost of a volume up to {most:,} volumes", large / small if small > 0 else math.inf, 1.1,
            f"between {sizes[tenth]:,} and {sizes[max(0, len(sizes) - 2)]:,} ({phantoms})", at_least=False, why=NOISE,
        ),
        Figure("milliseconds a volume", 1000 * large, None, phantoms, False, "ms"),
        Figure(
            f"peak memory of the driver at {most:,} volumes", peaks[-1] / peaks[tenth], 1.1,
            f"at {sizes[tenth]:,} ({phantoms})", at_least=False, why=ROWS,
        ),
        Figure(f"run over {objects:,} objects on S3 with nothing new", rerun, 20, "a clock", False, "s", why=LISTING),
        *large_figures(found),
    ]  # fmt: skip
    facts = {"sizes": sizes, "seconds": seconds, "driver_peak_mib": peaks, "objects": objects, "large": found}
    return Measured(figures, facts | {"phases_s": [report["phases_s"] for report in reports]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=10_000, help="of the largest archive (default %(default)s)")
    parser.add_argument("--objects", type=int, default=100_000, help="that are listed (default %(default)s)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the largest ledger (default %(default)s)")
    main(measured, parser)
