"""From the bytes of a volume to uint8 slices: medret against inflating alone and against the usual way, in one run.

    python bench/decode.py [--data FOLDER] [--volumes N] [--repeats N] [--json]

One core. Every route makes the same number of slices of 224 px of a volume, spread evenly. The routes take turns at
each file, and each file counts with its best time.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import deflate
import nibabel as nib
import numpy as np
from corpus import corpus
from figures import Figure, Measured, main
from PIL import Image

from medret.recipe import SliceRecipe
from medret.volume import read_volume

SIDE_PX = 224
SLICES = 16
LARGE_BYTES = 4 << 20  # inflated
# What read_volume spends its time on: the functions that it calls.
STEPS = {
    "inflate": ("open_volume",),
    "statistics": ("count_non_finite", "take_sample", "modality_of", "percentile_window", "foreground_box"),
    "window": ("to_grey",),
    "resize": ("draw_squares",),
}


@dataclass(frozen=True)
class File:
    """A .nii.gz in memory and its inflated twin on the disk. slices: how many every route makes of it."""

    data: bytes
    plain: Path
    inflated_bytes: int
    slices: int


Route = Callable[[File], object]


def inflate_only(file: File) -> bytearray:
    """The floor: nothing but inflating, its CRC checked."""
    return deflate.gzip_decompress(file.data, int.from_bytes(file.data[-4:], "little"))  # as gzip's trailer says


def medret_route(file: File) -> int:
    """What the pipeline's reading stage does."""
    return _slices(file.data)


def every_slice(file: File) -> int:
    """The same without a plan."""
    return _slices(file.data, "all")


def usual_way(file: File) -> int:
    """nibabel's float64 voxels in canonical order, percentiles of all of them, Pillow's resize of each slice."""
    return _usual_slices(bytes(inflate_only(file)), file.slices)


def mapped_route(file: File) -> int:
    """An uncompressed file, mapped into memory: its planned slices are what is read."""
    with file.plain.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as mapped:
        return _slices(mapped)


def read_and_convert(file: File) -> int:
    """The usual way with an uncompressed file."""
    return _usual_slices(file.plain.read_bytes(), file.slices)


def _slices(data: bytes | mmap, plan: str = f"uniform:{SLICES}") -> int:
    return len(read_volume(data, "bench", SliceRecipe(slices=plan), [SIDE_PX]).slices)


def _usual_slices(content: bytes, count: int) -> int:
    image = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(content))
    voxels = image.get_fdata()
    low, high = np.percentile(voxels, (0.5, 99.5))
    scaled = np.clip((voxels - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    for position in np.linspace(0, scaled.shape[2] - 1, count).round().astype(int):
        slice_image = Image.fromarray(scaled[:, :, position].T[::-1])
        np.asarray(slice_image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))
    return count


def measure(routes: Mapping[str, Route], files: Sequence[File], repeats: int) -> dict[str, list[float]]:
    """Seconds of each route for each file."""
    best = {name: [math.inf] * len(files) for name in routes}
    for _ in range(repeats):
        for at, file in enumerate(files):
            for name, route in routes.items():
                start = time.perf_counter()
                route(file)
                best[name][at] = min(best[name][at], time.perf_counter() - start)
    return best


def shares(files: Sequence[File]) -> dict[str, float]:
    """Of medret's time, the share of each step; "rest" is geometry, slice references and Python itself."""
    spent = dict.fromkeys(STEPS, 0.0)
    with _timed(spent):
        start = time.perf_counter()
        for file in files:
            medret_route(file)
        total = time.perf_counter() - start
    found = {step: seconds / total for step, seconds in spent.items()}
    return found | {"rest": 1 - sum(found.values())}


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """While it lasts, the steps of reading a volume add what they take."""

    def timed(step: str, function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent[step] += time.perf_counter() - start

        return run

    modules = [import_module(f"medret.volume.{name}") for name in ("read", "drawing")]
    with ExitStack() as stack:
        for step, names in STEPS.items():
            for name in names:
                module = next(module for module in modules if hasattr(module, name))
                stack.enter_context(mock.patch.object(module, name, timed(step, getattr(module, name))))
        yield


def mapped_share(files: Sequence[File]) -> float:
    """Of the bytes of uncompressed files, the share whose pages are in memory after their slices were made.

    Linux maps up to 16 pages around one that is touched, so a little more than what is needed. NaN elsewhere.
    """
    there, size = 0.0, 0
    for file in files:
        with file.plain.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as mapped:
            _slices(mapped)
            there += _resident_bytes(file.plain)
            size += len(mapped)
    return there / size


def _resident_bytes(path: Path) -> float:
    try:
        maps = Path("/proc/self/smaps").read_text()
    except OSError:  # not Linux
        return math.nan
    found = re.search(re.escape(str(path)) + r"\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    return int(found[1]) * 1024 if found else math.nan


def why(files: Sequence[File], seconds: Mapping[str, Sequence[float]], chosen: Sequence[int]) -> str:
    """What stands beside inflating, in words, measured just now."""
    share = shares([files[at] for at in chosen])
    listed = ", ".join(f"{step} {part:.0%}" for step, part in share.items())
    inflate, medret = (sum(seconds[name][at] for at in chosen) for name in ("inflate", "medret"))
    most = inflate / (inflate + share["resize"] * medret)
    return f"of the time {listed}; with nothing but these resizes beside inflating it would be {most:.2f}"


def measured(arguments: argparse.Namespace) -> Measured:
    """One core, every route over the same files."""
    repeats = 1 if arguments.tiny else arguments.repeats
    with corpus(arguments.data, tiny=arguments.tiny) as (folder, name), TemporaryDirectory() as scratch:
        files = _files(folder, Path(scratch), 2 if arguments.tiny else arguments.volumes)
        routes: dict[str, Route] = {"inflate": inflate_only, "medret": medret_route, "usual": usual_way}
        seconds = measure(routes, files, repeats)
        further: dict[str, Route] = {"all": every_slice, "mapped": mapped_route, "converted": read_and_convert}
        seconds |= measure(further, files, max(1, repeats - 1))
        everything = range(len(files))
        large = [at for at in everything if files[at].inflated_bytes >= LARGE_BYTES]
        whole = [at for at in everything if nib.Nifti1Image.from_filename(files[at].plain).get_data_dtype().kind != "f"]
        small = [at for at in everything if at not in large]
        groups: dict[str, Sequence[int]] = {"": everything}
        if large and small:
            groups |= {", large volumes": large, ", small volumes": small}

        def ratio(of: str, to: str, chosen: Sequence[int] = everything) -> float:
            return sum(seconds[of][at] for at in chosen) / sum(seconds[to][at] for at in chosen)

        figures = []
        for group, chosen in groups.items():
            short = why(files, seconds, chosen)
            row = f"decode{group}"
            figures.append(Figure(row, ratio("usual", "medret", chosen), 3, "nibabel + Pillow", why=short))
            wanted = 0.7 if chosen is large else None  # elsewhere out of reach (docs/decisions/0033)
            figures.append(Figure(row, ratio("inflate", "medret", chosen), wanted, "inflating alone", why=short))
        figures.append(Figure(f"decode, {SLICES} slices planned", ratio("all", "medret"), None, "every slice"))
        figures.append(Figure("decode, .nii mapped", ratio("converted", "mapped"), 3, "reading all, nibabel + Pillow"))
        if whole and not math.isnan(touched := mapped_share([files[at] for at in whole])):
            against = "the whole .nii (whole numbers): the sample for statistics takes up to 48 slices"
            figures.append(Figure("decode, bytes mapped", 100 * touched, None, against, at_least=False, unit="%"))
        slices = sum(file.slices for file in files)
        facts = {
            "volumes": len(files),
            "large_volumes": len(large),
            "data": name,
            "slices": slices,
            "slices_per_second": {route: slices / sum(spent) for route, spent in seconds.items() if route != "all"},
            "shares_of_the_time": shares(files),
        }
    return Measured(figures, facts)


def _files(folder: Path, scratch: Path, most: int) -> list[File]:
    """The first volumes of three dimensions, inflated beside."""
    files: list[File] = []
    for number, path in enumerate(sorted(folder.rglob("*.nii.gz"))):
        if len(files) < most and len(nib.Nifti1Image.from_filename(path).shape) == 3:
            data, plain = path.read_bytes(), scratch / f"{number}.nii"
            inflated = deflate.gzip_decompress(data, int.from_bytes(data[-4:], "little"))
            plain.write_bytes(inflated)
            files.append(File(data, plain, len(inflated), _slices(data)))
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="of .nii.gz files (default: the real volumes, or phantoms)")
    parser.add_argument("--volumes", type=int, default=1000, help="at most so many (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    main(measured, parser)
