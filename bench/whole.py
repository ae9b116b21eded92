"""Whole jobs, from files to a searchable index on disk, each in a process of its own: medret, and what users write.

    python bench/whole.py JOB FOLDER OUT

All of them embed 16 slices of 224 px of every volume (medret of the body alone) with efficientnet_lite0 (ImageNet
weights), average the vectors of each, and leave them and an index in OUT. Users take the model as timm makes it, in
float32, and each package as its own documentation has it. `once` is Ray's start, the imports of torch and timm, and the
loop, in one process; it says on standard output how many seconds that took.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from PIL import Image

from medret.errors import VolumeError
from medret.recipe import SliceRecipe
from medret.volume import read_volume

MODEL = "efficientnet_lite0"
SIDE_PX, SLICES = 224, 16
CORES = len(os.sched_getaffinity(0))
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def chosen(folder: Path, most: int, into: Path) -> list[Path]:
    """At most so many usable volumes, evenly taken from all, linked into a folder of their own."""
    into.mkdir()
    usable = [path for path in sorted(folder.rglob("*.nii*")) if _is_usable(path)]
    step = max(1.0, len(usable) / most)
    for number in range(min(most, len(usable))):
        path = usable[int(number * step)]
        (into / f"{number:04d}_{path.name}").symlink_to(path.resolve())
    return sorted(into.iterdir())


def _is_usable(path: Path) -> bool:
    """What the plain loop can read too: 3D, with at least as many slices as are wanted."""
    try:
        read = read_volume(path.read_bytes(), path.name, SliceRecipe(slices=f"uniform:{SLICES}"), [SIDE_PX])
        return len(read.slices) == SLICES and len(nib.Nifti1Image.from_filename(path).shape) == 3
    except (VolumeError, ImageFileError):
        return False


def usual_slices(data: bytes) -> list[NDArray[Any]]:
    """(3, 224, 224) float32 each, as such loops are written: nibabel's float64 voxels, percentiles, Pillow."""
    raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    image = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(raw))
    voxels = image.get_fdata()
    low, high = np.percentile(voxels, (0.5, 99.5))
    scaled = (np.clip((voxels - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    found = []
    for place in np.linspace(0, scaled.shape[2] - 1, SLICES).round().astype(int):
        picture = Image.fromarray(scaled[:, :, place].T[::-1]).resize((SIDE_PX, SIDE_PX)).convert("RGB")
        found.append(((np.asarray(picture, np.float32).transpose(2, 0, 1) / 255 - MEAN) / STD).astype(np.float32))
    return found


def usual_model() -> Any:
    """timm's module in float32, without what medret adds to it."""
    from medret.models import model_spec, resolve_weights
    from medret.models.encoder import load_model

    return load_model(dataclasses.replace(model_spec(MODEL), layers=()), resolve_weights(model_spec(MODEL)))


class Recipe:
    """The model of Ray Data's recipe: a class for map_batches, as its documentation has it."""

    def __init__(self) -> None:
        self._model = usual_model()

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """(16, 3, 224, 224) float32 to vectors."""
        import torch

        with torch.inference_mode():
            vectors = self._model(torch.from_numpy(batch["image"])).numpy()
        ended = np.full(len(vectors), time.time())
        return {"vector": vectors, "ended": ended} | {name: batch[name] for name in ("path", "decoded", "decode_s")}


def recipe_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's preprocessing: one file to its slices."""
    began = time.process_time()
    images = usual_slices(row["bytes"])
    spent = (time.process_time() - began) / len(images)
    return [{"path": row["path"], "image": image, "decoded": time.time(), "decode_s": spent} for image in images]


def start_ray() -> None:
    """Start Ray as the recipe's user does, without its dashboard and without its lines."""
    import ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


def recipe_dataset(paths: Sequence[Path]) -> Any:
    """Ray Data as its page on batch inference has it."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    files = ray.data.read_binary_files([str(path) for path in paths], include_paths=True)
    return files.flat_map(recipe_rows).map_batches(
        Recipe, batch_size=SLICES, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1)
    )


def mean_of_slices(rows: Any) -> tuple[list[str], NDArray[np.float32]]:
    """The names of the volumes and their vectors, from a pandas table with a row per slice."""
    vectors = rows.groupby("path")["vector"].apply(lambda column: np.mean(np.stack(list(column)), axis=0))
    return [Path(path).name for path in vectors.index], np.stack(list(vectors)).astype(np.float32)


def embedded(paths: Sequence[Path]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each volume with its vector, one after the other."""
    import torch

    torch.set_num_threads(CORES)
    model = usual_model()
    for path in paths:
        batch = torch.from_numpy(np.stack(usual_slices(path.read_bytes())))
        with torch.inference_mode():
            yield path.name, model(batch).mean(0).numpy()


def _write(names: Sequence[str], vectors: NDArray[np.float32], out: Path) -> None:
    """The vectors as Parquet and as an HNSW index of FAISS."""
    import faiss

    pq.write_table(pa.table({"volume": list(names), "vector": list(vectors)}), out / "vectors.parquet")
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    faiss.write_index(index, str(out / "index.faiss"))


def loop(paths: Sequence[Path], out: Path) -> None:
    """nibabel, Pillow, timm and FAISS in one loop."""
    names, vectors = zip(*embedded(paths), strict=True)
    _write(names, np.stack(vectors), out)


def ray_data(paths: Sequence[Path], out: Path) -> None:
    """Ray Data's recipe; the vectors of slices go to Parquet, as its documentation writes results."""
    import ray

    start_ray()
    recipe_dataset(paths).write_parquet(str(out / "slices"))
    ray.shutdown()
    _write(*mean_of_slices(pq.read_table(out / "slices").to_pandas()), out)


def daft_frame(paths: Sequence[Path], out: Path) -> None:
    """Daft: a column of bytes, one of slices, one of vectors by a class that holds the model."""
    daft: Any = import_module("daft")
    numbers = daft.DataType.float32()
    slices = daft.udf(return_dtype=daft.DataType.tensor(numbers, (SLICES, 3, SIDE_PX, SIDE_PX)), batch_size=4)(stacks)
    embed = daft.udf(return_dtype=daft.DataType.list(numbers), batch_size=4, concurrency=1)(Means)
    frame = daft.from_pydict({"path": [str(path) for path in paths]})
    frame = frame.with_column("images", slices(frame["path"].url.download()))
    frame.with_column("vector", embed(frame["images"])).select("path", "vector").write_parquet(str(out / "volumes"))
    table = pq.read_table(out / "volumes")
    vectors = np.stack(table["vector"].to_pylist()).astype(np.float32)
    _write([Path(path).name for path in table["path"].to_pylist()], vectors, out)


def stacks(contents: Any) -> list[NDArray[Any]]:
    """The slices of every file of a column."""
    return [np.stack(usual_slices(data)) for data in contents.to_pylist()]


class Means:
    """The model of Daft's job: it holds the model and takes a column of slices."""

    def __init__(self) -> None:
        self._model = usual_model()

    def __call__(self, images: Any) -> list[NDArray[Any]]:
        """The mean vector of every volume."""
        import torch

        with torch.inference_mode():
            return [self._model(torch.from_numpy(stack)).mean(0).numpy() for stack in images.to_pylist()]


def lance(paths: Sequence[Path], out: Path) -> None:
    """The loop, with LanceDB as the store and the index."""
    lancedb: Any = import_module("lancedb")
    rows = [{"volume": name, "vector": vector} for name, vector in embedded(paths)]
    table = lancedb.connect(out / "lance").create_table("volumes", rows)
    settings: Any = import_module("lancedb.index").HnswSq(distance_type="cosine", num_partitions=1)
    table.create_index("vector", config=settings)


def once(paths: Sequence[Path], out: Path) -> None:
    """What no run with Ray can be without."""
    began = time.perf_counter()
    start_ray()
    import timm  # noqa: F401
    import torch  # noqa: F401

    loop(paths, out)
    print(time.perf_counter() - began, flush=True)


JOBS = {"loop": loop, "Ray Data": ray_data, "Daft": daft_frame, "LanceDB": lance, "once": once}
NEEDS = {"Daft": "daft", "LanceDB": "lancedb"}


def whole_job(job: str, folder: Path) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Wall seconds of the process of a job over a folder (for `once`, what it says), and the vectors of its volumes."""
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, job, str(folder), out], check=False, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"{job} failed: {done.stderr[-2000:]}")
        if job == "LanceDB":
            table = import_module("lancedb").connect(Path(out) / "lance").open_table("volumes").to_arrow()
        else:
            table = pq.read_table(Path(out) / "vectors.parquet")
        vectors = np.stack(table["vector"].to_pylist()).astype(np.float32)
        said = float(done.stdout.splitlines()[-1]) if job == "once" else seconds
        return said, dict(zip(table["volume"].to_pylist(), vectors, strict=True))


def medret_job(folder: Path, models: Sequence[str], slices: int) -> dict[str, Any]:
    """`medret index` into a new store, as a user runs it; its run report, with `seconds` of the process."""
    with tempfile.TemporaryDirectory() as scratch:
        options = [part for model in models for part in ("--model", model)]
        if len(models) > 1:
            options += [part for model in models for part in ("--weights", f"{model}=random")]
            options += ["--min-recall", "0"]  # random networks hardly tell slices apart: LSH finds few of them
        command = [sys.executable, "-m", "medret", "index", str(folder), f"{scratch}/store", *options]
        command += ["--slices", f"uniform:{slices}", "--max-quarantined", "1", "--quiet"]
        started = time.time()
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 4):
            raise SystemExit(f"medret index failed: exit code {done.returncode}")
        seconds = time.time() - started
        [path] = Path(scratch, "store", "runs").glob("*.json")
        report: dict[str, Any] = json.loads(path.read_text())
        return report | {"seconds": seconds}


if __name__ == "__main__":
    JOBS[sys.argv[1]](sorted(Path(sys.argv[2]).iterdir()), Path(sys.argv[3]))
