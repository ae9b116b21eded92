"""Thousands of damaged volumes through the reader, in a process with a ceiling on memory and a clock on each one."""

from __future__ import annotations

import gzip
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from medret.errors import VolumeError
from medret.recipe import PLANES, SliceRecipe
from medret.volume import Limits, read_volume

CASES = 2400
SECONDS = 5
MIB = 1 << 20
LIMITS = Limits(max_voxels_bytes=64 * MIB)
# Decoded voxels, a gathered copy of slices, and float64 work on a sample: what one volume may take beyond its bytes.
MEMORY_BYTES = 4 * LIMITS.max_voxels_bytes
WORDS = (0, 1, 2, -1, 7, 64, 255, 256, 348, 540, 4096, 32767, -32768)
REALS = (0.0, -1.0, 1e-42, 3e38, -3e38, float("nan"), float("inf"), 352.0, 1e9)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One damaged copy: fields, bits, pieces cut out, put in, doubled or swapped, before or after compression."""
    raw = bytearray(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    packed_after = rng.random() < 0.5
    if not packed_after and rng.random() < 0.5:
        raw = bytearray(gzip.compress(bytes(raw), 1))  # damage the compressed stream itself
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(352) if rng.random() < 0.7 else rng.randrange(len(raw) or 1)
        match rng.randrange(6):
            case 0:
                raw[place : place + 2] = struct.pack("<h", rng.choice(WORDS))
            case 1:
                raw[place : place + 4] = struct.pack("<f", rng.choice(REALS))
            case 2 if len(raw) > place:
                raw[place] ^= 1 << rng.randrange(8)
            case 3:
                del raw[place : place + rng.choice((1, 7, 400, 10**6))]
            case 4:
                raw[place:place] = rng.randbytes(rng.choice((1, 4, 348)))
            case _:
                raw += raw[: rng.choice((10, 348, 5000))]
    return gzip.compress(bytes(raw), 1) if packed_after else bytes(raw)


def outcome(data: bytes, plan: str) -> str:
    """`volume`, or the code that it was refused with."""
    try:
        volume = read_volume(data, "case", SliceRecipe(planes=PLANES, slices=plan), [32], limits=LIMITS)
    except VolumeError as error:
        return "out of memory" if "too little memory" in error.reason else str(error.code)
    return "volume" if volume.slices and len(volume.pixels[32]) == len(volume.slices) else "nothing"


def campaign(folder: Path, cases: int) -> dict[str, Any]:
    """In a child process: how each case ended, and the slowest. A case beyond its time ends the process."""
    # Address space is taken for code and threads too, before the first case.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    taken = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, resource.RLIM_INFINITY))
    originals = [path.read_bytes() for path in sorted(folder.iterdir()) if path.stat().st_size < 4 * MIB]
    rng = random.Random(20260131)
    ends: Counter[str] = Counter()
    slowest = 0.0
    for number in range(cases):
        data = mutated(rng.choice(originals), rng)
        signal.alarm(SECONDS)
        start = time.monotonic()
        try:
            ends[outcome(data, rng.choice(("all", "uniform:4", "every:3")))] += 1
        except Exception as error:
            raise AssertionError(f"case {number} of {len(data)} bytes: {error!r}") from error
        slowest = max(slowest, time.monotonic() - start)
        signal.alarm(0)
    return {"ends": ends, "slowest": slowest}


def run_campaign(folder: Path, cases: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"the reader took its process down ({done.returncode}): {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(done.stdout)
    assert sum(result["ends"].values()) == cases
    assert not {"nothing", "out of memory"} & set(result["ends"]), result
    assert len(result["ends"]) > 5, result  # the damage is of many kinds
    return result


def test_thousands_of_damaged_phantoms(phantoms: Any, tmp_path: Path) -> None:
    body = phantoms.body((34, 30, 26))
    (tmp_path / "ct.nii.gz").write_bytes(phantoms.nifti(phantoms.hounsfield(body)))
    (tmp_path / "mri.nii.gz").write_bytes(phantoms.nifti(body.astype("f4")))
    (tmp_path / "pet.nii").write_bytes(phantoms.nifti(body.astype("u2"), compress=False))
    found = run_campaign(tmp_path, CASES)
    assert found["ends"]["volume"] > CASES / 20  # and not all of it deadly


def test_damaged_real_volumes(shared_data: Path, tmp_path: Path) -> None:
    sizes = sorted((path.stat().st_size, path) for path in (shared_data / "volumes").iterdir())
    for _, path in sizes[:30:6]:
        (tmp_path / path.name).symlink_to(path)
    run_campaign(tmp_path, 300)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(campaign(Path(sys.argv[1]), int(sys.argv[2]))))
