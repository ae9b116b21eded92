"""From the bytes of a .nii.gz to uint8 slices: medret against inflating alone and against the usual way, in one run.

    python bench/decode.py [--data FOLDER] [--volumes N] [--repeats N] [--json]

Every route gives the same number of slices of 224 px, spread evenly.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

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
Route = Callable[[bytes], int]  # the bytes of one file -> how many slices came out


def inflate_only(data: bytes) -> int:
    """The floor: nothing but inflating."""
    _inflate(data)
    return SLICES


def medret_route(data: bytes) -> int:
    """What the pipeline's reading stage does."""
    return len(read_volume(data, "bench", SliceRecipe(slices=f"uniform:{SLICES}"), [SIDE_PX]).slices)


def usual_way(data: bytes) -> int:
    """nibabel's float64 voxels in canonical order, percentiles of all of them, Pillow's resize of each slice."""
    image = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(_inflate(data)))
    voxels = image.get_fdata()
    low, high = np.percentile(voxels, (0.5, 99.5))
    scaled = np.clip((voxels - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    positions = np.linspace(0, scaled.shape[2] - 1, SLICES).round().astype(int)
    slices = [Image.fromarray(scaled[:, :, p].T[::-1]).resize((SIDE_PX, SIDE_PX)) for p in positions]
    return len(slices)


def measure(routes: dict[str, Route], files: list[bytes], repeats: int) -> dict[str, float]:
    """Slices per second of each route: its best pass of `repeats`, the routes taking turns."""
    best: dict[str, float] = dict.fromkeys(routes, 0.0)
    for _ in range(repeats):
        for name, route in routes.items():
            start = time.perf_counter()
            slices = sum(route(data) for data in files)
            best[name] = max(best[name], slices / (time.perf_counter() - start))
    return best


def _inflate(data: bytes) -> bytes:
    size_bytes = int.from_bytes(data[-4:], "little")  # gzip's trailer
    return bytes(deflate.gzip_decompress(data, size_bytes))


def measured(arguments: argparse.Namespace) -> Measured:
    """One core, every route over the same files."""
    with corpus(arguments.data, tiny=arguments.tiny) as (folder, name):
        shapes = {path: nib.Nifti1Image.from_filename(path).shape for path in sorted(folder.rglob("*.nii.gz"))}
        paths = [path for path, shape in shapes.items() if len(shape) == 3]
        files = [path.read_bytes() for path in paths[: 2 if arguments.tiny else arguments.volumes]]
    routes: dict[str, Route] = {"inflate only": inflate_only, "medret": medret_route, "nibabel + Pillow": usual_way}
    rates = measure(routes, files, 1 if arguments.tiny else arguments.repeats)
    figures = [
        Figure("decode", rates["medret"] / rates["nibabel + Pillow"], 3, "nibabel + Pillow"),
        Figure("decode", rates["medret"] / rates["inflate only"], 0.7, "inflating alone"),
    ]
    return Measured(figures, {"volumes": len(files), "data": name, "slices_per_second": rates})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="of .nii.gz files (default: the real volumes, or phantoms)")
    parser.add_argument("--volumes", type=int, default=12, help="at most so many (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    main(measured, parser)
