"""The whole job against its floor, against a plain loop, and against the recipe of Ray Data's documentation.

    python bench/job.py [--data FOLDER] [--volumes N] [--five N] [--json]

All four do the same work: every volume's bytes to 16 slices of 224 px, efficientnet_lite0 (ImageNet weights) to a mean
vector a volume, HNSW over the vectors. The floor is the processor time of the bare model and of inflating the bytes,
spread over the cores. Rates are steady ones, after the first batch, with what was decoded before it added at the speed
of all cores. What starting costs is a figure of its own, of a second run: one over a few volumes goes before it, so
that libraries need not come from a cold disk. The plain loop and the recipe use the model as timm makes it, in float32,
which is what their users write.

Five models in one run (random weights, which each actor has to draw while others work already) are compared with the
sum of their bare times.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import deflate
import nibabel as nib
import numpy as np
from corpus import corpus
from figures import Figure, Measured, main
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from PIL import Image

from medret.errors import VolumeError
from medret.pipeline.counter import idle_share
from medret.recipe import Precision, SliceRecipe
from medret.volume import read_volume

MODEL = "efficientnet_lite0"
FIVE = ("dinov1", "dinov2", "dreamsim", "swin", "resnet50")
SIDE_PX, SLICES, FIVE_SLICES = 224, 16, 2
CORES = len(os.sched_getaffinity(0))
WAYS = frozenset({1, CORES})
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


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


def plain_loop(paths: list[Path]) -> float:
    """nibabel, Pillow, timm and FAISS in one loop; steady slices per second."""
    import faiss
    import torch

    torch.set_num_threads(CORES)
    model, vectors, first = usual_model(), [], 0.0
    for path in paths:
        batch = torch.from_numpy(np.stack(usual_slices(path.read_bytes())))
        with torch.inference_mode():
            vectors.append(model(batch).mean(0).numpy())
        first = first or time.perf_counter()
    rate = SLICES * (len(paths) - 1) / (time.perf_counter() - first)
    index = faiss.IndexHNSWFlat(len(vectors[0]), 32, faiss.METRIC_INNER_PRODUCT)
    index.add(np.stack(vectors))
    return rate


class Recipe:
    """The model of the recipe: a class for map_batches, as the documentation of Ray Data has it."""

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


def ray_recipe(paths: list[Path]) -> float:
    """Ray Data as its page on batch inference has it; steady slices per second."""
    import faiss
    import ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        files = ray.data.read_binary_files([str(path) for path in paths], include_paths=True)
        embedded = files.flat_map(recipe_rows).map_batches(
            Recipe, batch_size=16, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1)
        )
        rows = embedded.to_pandas()
    finally:
        ray.shutdown()
    ended = np.sort(rows["ended"].to_numpy())
    ahead_s = rows.loc[rows["decoded"] < ended[0], "decode_s"].sum()
    vectors = rows.groupby("path")["vector"].apply(lambda column: np.mean(np.stack(list(column)), axis=0))
    index = faiss.IndexHNSWFlat(len(vectors.iloc[0]), 32, faiss.METRIC_INNER_PRODUCT)
    index.add(np.stack(list(vectors)).astype(np.float32))
    return float(np.sum(ended > ended[0]) / (ended[-1] - ended[0] + ahead_s / CORES))


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


def steady(report: dict[str, Any], model: str) -> float:
    """Slices per second of a run after its first batch, with the reading that was done before it added."""
    timeline = report["timeline"]
    span, read, step_s = timeline["stages"][f"embed {model}"], timeline["stages"]["read"]["busy_s"], timeline["step_s"]
    ahead_s = sum(read[: int(span["first_ended_s"] / step_s)])
    passed = span["ended_s"] - span["first_ended_s"] + ahead_s / CORES
    slices = span["slices"] - span["first_slices"]
    if slices == 0:  # one batch was all
        return float(span["slices"] / (span["ended_s"] - span["began_s"]))
    return float(slices / passed)


def bare_rate(model: str, precision: Precision, batch_size: int, batches: int, ways: Collection[int] = WAYS) -> float:
    """Slices per second of the bare module over tensors made before, with all cores: the best of some ways.

    ways: numbers of processes, which share the cores: one with a thread a core, or one a core with one thread
    each. Random weights but for MODEL.
    """
    context, rates = multiprocessing.get_context("spawn"), []
    for processes in ways:
        barrier = context.Barrier(processes)
        arguments = (model, precision, batch_size, batches, CORES // processes, barrier)
        with ProcessPoolExecutor(processes, context, initializer=_share, initargs=(arguments,)) as pool:
            spans = list(pool.map(_bare, range(processes)))
        passed = max(end for _, end in spans) - min(begin for begin, _ in spans)
        rates.append(processes * batches * batch_size / passed)
    return max(rates)


def _share(arguments: tuple[Any, ...]) -> None:
    globals()["shared"] = arguments


def _bare(_: int) -> tuple[float, float]:
    """One process's span of work; all begin together, and go on until the last has had its share."""
    import torch

    from medret.models import model_spec, resolve_weights
    from medret.models.encoder import Autocast, in_bf16, is_convolutional, load_model

    name, precision, batch_size, batches, threads, barrier = globals()["shared"]
    torch.set_num_threads(threads)
    spec = model_spec(name)
    module = load_model(spec, resolve_weights(spec, None if name == MODEL else "random"))
    layout = torch.channels_last if is_convolutional(module) else torch.contiguous_format
    module = module.to(memory_format=layout)
    module = in_bf16(module) if precision == "bf16" else module
    takes_float32 = precision == "fp32" or isinstance(module, Autocast) or spec.family == "dreamsim"
    images = torch.randn(batch_size, 3, spec.image_size, spec.image_size)
    images = images.to(torch.float32 if takes_float32 else torch.bfloat16).to(memory_format=layout)
    with torch.inference_mode():
        module(images)
        barrier.wait()
        begin = time.time()
        for _ in range(batches):
            module(images)
    return begin, time.time()


def inflating_s(paths: Sequence[Path]) -> float:
    """Processor seconds of inflating every file, one after the other."""
    contents = [path.read_bytes() for path in paths]
    began = time.process_time()
    for data in contents:
        if data[:2] == b"\x1f\x8b":
            deflate.gzip_decompress(data, int.from_bytes(data[-4:], "little"))
    return time.process_time() - began


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
        read_volume(path.read_bytes(), path.name, SliceRecipe(slices=f"uniform:{SLICES}"), [SIDE_PX])
        return len(nib.Nifti1Image.from_filename(path).shape) == 3
    except (VolumeError, ImageFileError):
        return False


def five_models(folder: Path) -> tuple[float, dict[str, Any]]:
    """Time from the first model's first batch to the last model's last, to the sum of the five bare times."""
    report = medret_job(folder, FIVE, FIVE_SLICES)
    spans = [report["timeline"]["stages"][f"embed {model}"] for model in FIVE]
    passed = max(span["ended_s"] for span in spans) - min(span["began_s"] for span in spans)
    rates = {model: bare_rate(model, _precision(report, model), 8, 2) for model in FIVE}
    bare_s = sum(span["slices"] / rates[model] for model, span in zip(FIVE, spans, strict=True))
    return passed / bare_s, {"seconds": passed, "bare_slices_per_second": rates, "slices": spans[0]["slices"]}


def measured(arguments: argparse.Namespace) -> Measured:
    """Everything in turn, over the same volumes."""
    with corpus(arguments.data, tiny=arguments.tiny) as (folder, name), tempfile.TemporaryDirectory() as scratch:
        linked, few = Path(scratch) / "archive", Path(scratch) / "few"
        paths = chosen(folder, 4 if arguments.tiny else arguments.volumes, linked)
        if not arguments.tiny:
            chosen(folder, 4, Path(scratch) / "before")
            medret_job(Path(scratch) / "before", [MODEL], SLICES)
        report = medret_job(linked, [MODEL], SLICES)
        span, precision = report["timeline"]["stages"][f"embed {MODEL}"], _precision(report, MODEL)
        sizes, most, ways = ((8,), 16, {1}) if arguments.tiny else ((8, 16, 32), 256, WAYS)
        bare = max(bare_rate(MODEL, precision, size, most // size, ways) for size in sizes)
        slices = span["slices"]
        model_s, inflate_s = slices / bare, inflating_s(paths) / CORES
        floor, job = slices / (model_s + inflate_s), steady(report, MODEL)
        idle = idle_share(report["timeline"], f"embed {MODEL}", report["pools"][0]["sizes"][0])
        plain, recipe = plain_loop(paths), ray_recipe(paths)
        bound = f"the floor itself is {floor / plain:.1f} times the loop and {floor / recipe:.1f} times the recipe here"
        figures = [
            Figure(
                "job, steady: time to its floor",
                floor / job,
                1.2,
                "bare model + inflating, all cores",
                False,
                why=f"model {idle:.0%} idle; {1 - job / bare:.0%} of the cores goes to Ray, reading and writing",
            ),
            Figure("job, steady: slices/s", job / plain, 3.5, "loop of nibabel, Pillow, timm, FAISS", why=bound),
            Figure("job, steady: slices/s", job / recipe, 6, "Ray Data's recipe for batch inference", why=bound),
            Figure("job: start to end of the first batch", span["first_ended_s"], None, "the run's start", False, "s"),
            Figure("job: model idle between its batches", idle, None, "its time from first to last", False),
        ]
        facts = {
            "volumes": len(paths),
            "data": name,
            "precision": precision,
            "bare_slices_per_second": bare,
            "inflating_s": inflate_s,
            "job_slices_per_second": job,
            "seconds": report["seconds"],
            "phases_s": report["phases_s"],
            "timeline": report["timeline"],
        }
        if not arguments.tiny:
            chosen(folder, arguments.five, few)
            ratio, facts["five"] = five_models(few)
            figures.append(
                Figure(
                    "five models in one run: time",
                    ratio,
                    1.1,
                    "the sum of their bare times (random weights)",
                    False,
                    why="six actors, reading and writing take turns on the cores; not taken apart further",
                )
            )
    return Measured(figures, facts)


def _precision(report: dict[str, Any], model: str) -> Precision:
    found: Precision = report["precisions"][model]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of volumes (default: the real volumes, or phantoms)")
    parser.add_argument("--volumes", type=int, default=192, help="at most so many (default %(default)s)")
    parser.add_argument(
        "--five", type=int, default=160, help="volumes of the run with five models (default %(default)s)"
    )
    main(measured, parser)
