"""Two thousand damaged DICOM series through the reader, in a process with a ceiling on memory and a clock on each."""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.uid import JPEGLosslessSV1

from medret.errors import VolumeError
from medret.recipe import PLANES, SliceRecipe
from medret.volume import Limits, Part, read_volume
from medret.volume.content import Content
from tests import dicom_phantoms as make

CASES = 2000
SECONDS = 5
MIB = 1 << 20
LIMITS = Limits(max_voxels_bytes=64 * MIB)
MEMORY_BYTES = 512 * MIB  # what one volume may take beyond its bytes, and pydicom's tables
VALUES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x01",
    b"\0\0",
    b"\xff\xff",
    b"\xff\xff\xff\xff",
    b"\xff\x7f",
    b"\0\0\0\x80",
)
Series = list[tuple[str, bytes]]


def originals() -> list[Series]:
    """Small series of every kind that the reader tells apart."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(np.arange(36), np.arange(40), np.arange(3), indexing="ij")
    voxels = ((x * 37 + y * 11 + z * 300) % 900 + rng.integers(0, 40, x.shape)).astype(np.uint16)
    found = [make.parts_of(make.single_frames(voxels, BodyPartExamined="HEAD"), syntax) for syntax in make.SYNTAXES]
    frames = np.stack([voxels, voxels[::-1]], axis=3)
    found += [make.parts_of([make.enhanced(frames)], syntax) for syntax in ("explicit", "RLE", "JPEG 2000")]
    jpegs = []
    for number, data in enumerate(make.single_frames(voxels.astype(np.uint8))):
        stream = io.BytesIO()
        Image.fromarray((voxels[:, :, number].T >> 2).astype(np.uint8)).save(stream, "JPEG")
        jpegs.append(Part(f"{number}", make.with_stream(data, "1.2.840.10008.1.2.4.50", stream.getvalue())))
    found.append(tuple(jpegs))
    lossless = make.single_frames(np.zeros((18, 16, 1), np.int16))[0]
    found.append((Part("jpeg lossless", make.with_stream(lossless, JPEGLosslessSV1, make.JPEG_LOSSLESS)),))
    mosaic = make.mosaic(voxels[:18, :16].astype(np.int16), (0, 0, 1))
    found.append(make.parts_of(mosaic))
    return [[(part.name, part.data) for part in parts] for parts in found]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One damaged copy: bytes, lengths, pieces cut out, put in or doubled; in the header or in the pixels."""
    raw = bytearray(data)
    pixels = raw.find(b"\xe0\x7f\x10\x00") % len(raw)
    for _ in range(rng.randint(1, 4)):
        low, high = (132, pixels) if rng.random() < 0.5 else (pixels, len(raw))
        place = rng.randrange(min(low, len(raw) - 1), max(min(high, len(raw)), min(low, len(raw) - 1) + 1))
        match rng.randrange(6):
            case 0:
                value = rng.choice(VALUES)
                raw[place : place + len(value)] = value
            case 1:
                raw[place] ^= 1 << rng.randrange(8)
            case 2:
                del raw[place : place + rng.choice((1, 2, 8, 300, 10**6))]
            case 3:
                raw[place:place] = rng.randbytes(rng.choice((1, 2, 8, 64)))
            case 4:
                raw[place:place] = raw[place : place + rng.choice((8, 100, 2000))]
            case _:
                raw[place] = rng.randrange(256)
        raw = raw or bytearray(b"\0")
    return bytes(raw)


def case(series: Series, rng: random.Random) -> Content:
    """A series of which one instance is damaged; now and then a damaged zip of it."""
    number = rng.randrange(len(series))
    parts = [Part(name, mutated(data, rng) if at == number else data) for at, (name, data) in enumerate(series)]
    if rng.random() < 0.9:
        return tuple(parts)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in series:
            archive.writestr(name, data)
    return mutated(stream.getvalue(), rng)


def outcome(content: Content, plan: str) -> str:
    """`volume`, or the code that it was refused with."""
    try:
        volume = read_volume(content, "case", SliceRecipe(planes=PLANES, slices=plan), [16], limits=LIMITS)
    except VolumeError as error:
        return "out of memory" if "too little memory" in error.reason else str(error.code)
    return "volume" if volume.slices and len(volume.pixels[16]) == len(volume.slices) else "nothing"


def campaign(cases: int, seed: int) -> dict[str, Any]:
    """In a child process: how each case ended, and the slowest. A case beyond its time ends the process."""
    series, rng = originals(), random.Random(seed)
    ends: Counter[str] = Counter(outcome(tuple(Part(*part) for part in parts), "all") for parts in series)
    assert ends == {"volume": len(series)}, ends
    status = Path("/proc/self/status").read_text(encoding="ascii")
    taken = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, resource.RLIM_INFINITY))
    slowest = 0.0
    for number in range(cases):
        content = case(rng.choice(series), rng)
        signal.alarm(SECONDS)
        start = time.monotonic()
        try:
            ends[outcome(content, rng.choice(("all", "uniform:2")))] += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {error!r}") from error
        slowest = max(slowest, time.monotonic() - start)
        signal.alarm(0)
    return {"ends": ends, "slowest": slowest}


def test_two_thousand_damaged_series() -> None:
    command = [sys.executable, "-m", "tests.volume.test_dicom_fuzz", str(CASES), "20260131"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, f"the reader took its process down ({done.returncode}): {done.stderr[-2000:]}"
    ends = json.loads(done.stdout)["ends"]
    assert sum(ends.values()) >= CASES
    assert not {"nothing", "out of memory"} & set(ends), ends
    assert ends["volume"] > CASES / 10  # and not all of it deadly
    assert ends["instance_damaged"] > CASES / 10


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.stdout.write(json.dumps(campaign(int(sys.argv[1]), int(sys.argv[2]))))
