"""The whole job against its floor, against a plain loop, and against the recipe of Ray Data's documentation.

    python bench/job.py [--data FOLDER] [--volumes N] [--five N] [--json]

All four do the same work: the bytes of every volume, of those with enough slices, to 16 slices of 224 px,
efficientnet_lite0 (ImageNet weights) to a mean vector per volume, HNSW over the vectors. The floor is the processor
time of the encoder by itself and of inflating the bytes, spread over the cores. Steady rates begin after the first
batch, with what was decoded before it added at the speed of all cores. From the shell, whole processes are compared,
with all that starting and ending costs: all volumes, and a few, which one process embeds that starts Ray, imports torch
and timm, and loops. A run over a few volumes goes before all, so that libraries need not come from a cold disk. The
plain loop and the recipe use the model as timm makes it, in float32, which is what their users write (whole.py).

Five models in one run (random weights, which each actor has to draw while others work already) are compared with the
sum of their bare times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import deflate
import numpy as np
import ray
from corpus import corpus
from figures import Figure, Measured, main
from whole import CORES, MODEL, SLICES, chosen, embedded, medret_job, recipe_dataset, start_ray, whole_job

from medret.pipeline.counter import idle_share
from medret.recipe import Precision

FIVE, FIVE_SLICES = ("dinov1", "dinov2", "dreamsim", "swin", "resnet50"), 2
WAYS = frozenset({1, CORES})
FEW_VOLUMES = 12


def plain_loop(paths: list[Path]) -> float:
    """nibabel, Pillow, timm and FAISS in one loop; steady slices per second."""
    first = count = 0.0
    for _ in embedded(paths):
        first, count = first or time.perf_counter(), count + 1
    return SLICES * (count - 1) / (time.perf_counter() - first)


def ray_recipe(paths: list[Path]) -> float:
    """Ray Data as its page on batch inference has it; steady slices per second."""
    start_ray()
    try:
        rows = recipe_dataset(paths).to_pandas()
    finally:
        ray.shutdown()
    ended = np.sort(rows["ended"].to_numpy())
    ahead_s = rows.loc[rows["decoded"] < ended[0], "decode_s"].sum()
    return float(np.sum(ended > ended[0]) / (ended[-1] - ended[0] + ahead_s / CORES))


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
    """Slices per second of the encoder by itself over slices made before, with all cores: the best of some ways.

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
    from medret.models import Encoder, model_spec, resolve_weights

    name, precision, batch_size, batches, threads, barrier = globals()["shared"]
    spec = model_spec(name)
    weights = resolve_weights(spec, None if name == MODEL else "random")
    encoder = Encoder(spec, weights, precision=precision, batch_size=batch_size, threads=threads)
    slices = np.random.default_rng(0).integers(256, size=(batch_size, spec.image_size, spec.image_size), dtype=np.uint8)
    encoder.embed(slices)
    barrier.wait()
    begin = time.time()
    for _ in range(batches):
        encoder.embed(slices)
    return begin, time.time()


def inflating_s(paths: Sequence[Path]) -> float:
    """Processor seconds of inflating every file, one after the other."""
    contents = [path.read_bytes() for path in paths]
    began = time.process_time()
    for data in contents:
        if data[:2] == b"\x1f\x8b":
            deflate.gzip_decompress(data, int.from_bytes(data[-4:], "little"))
    return time.process_time() - began


def five_models(folder: Path) -> tuple[float, dict[str, Any]]:
    """Time from the first model's first batch to the last model's last, to the sum of the five bare times."""
    report = medret_job(folder, FIVE, FIVE_SLICES)
    spans = [report["timeline"]["stages"][f"embed {model}"] for model in FIVE]
    passed = max(span["ended_s"] for span in spans) - min(span["began_s"] for span in spans)
    rates = {model: bare_rate(model, _precision(report, model), 8, 2) for model in FIVE}
    bare_s = sum(span["slices"] / rates[model] for model, span in zip(FIVE, spans, strict=True))
    return passed / bare_s, {"seconds": passed, "bare_slices_per_second": rates, "slices": spans[0]["slices"]}


def from_the_shell(archive: Path, few: Path, *, tiny: bool) -> dict[str, float]:
    """Seconds of whole processes: the loop and the recipe over the archive, and medret and the least over a few."""
    if tiny:  # bench/peers.py makes tiny runs of the other jobs
        least = whole_job("once", archive)[0]
        return {"few, once": least, "few, medret": least, "loop": least, "Ray Data": least}
    chosen(archive, FEW_VOLUMES, few)
    least = whole_job("once", few)[0]
    seconds = {"few, once": least, "few, medret": medret_job(few, [MODEL], SLICES)["seconds"]}
    return seconds | {job: whole_job(job, archive)[0] for job in ("loop", "Ray Data")}


def shell_figures(seconds: dict[str, float], job: float) -> list[Figure]:
    """Whole processes, with what starting and ending cost. job: seconds of medret over all volumes."""
    least, start = "starting Ray, importing torch and timm and looping, in one process", "what starting costs"
    few = seconds["few, medret"] / seconds["few, once"]
    return [
        Figure("a few volumes from the shell: time", few, 1.6, least, False, why=start),
        Figure("job from the shell: times as fast", seconds["loop"] / job, 3.5, "the plain loop's process", why=start),
        Figure("job from the shell: times as fast", seconds["Ray Data"] / job, 6, "the recipe's process", why=start),
    ]


def measured(arguments: argparse.Namespace) -> Measured:
    """Everything in turn, over the same volumes."""
    with corpus(arguments.data, tiny=arguments.tiny) as (folder, name), tempfile.TemporaryDirectory() as scratch:
        linked, few = Path(scratch) / "archive", Path(scratch) / "few"
        paths = chosen(folder, 4 if arguments.tiny else arguments.volumes, linked)
        if not arguments.tiny:
            chosen(folder, 4, Path(scratch) / "before")
            medret_job(Path(scratch) / "before", [MODEL], SLICES)
        shell = from_the_shell(linked, Path(scratch) / "few volumes", tiny=arguments.tiny)
        report = medret_job(linked, [MODEL], SLICES)
        span, precision = report["timeline"]["stages"][f"embed {MODEL}"], _precision(report, MODEL)
        sizes, most, ways = ((8,), 16, {1}) if arguments.tiny else ((8, 16, 32), 256, WAYS)
        bare = max(bare_rate(MODEL, precision, size, most // size, ways) for size in sizes)
        slices = span["slices"]
        model_s, inflate_s = slices / bare, inflating_s(paths) / CORES
        floor, job = slices / (model_s + inflate_s), steady(report, MODEL)
        pools = report["pools"][0]
        idle = idle_share(report["timeline"], f"embed {MODEL}", pools["sizes"][0] * pools["at_once"][0])
        plain, recipe = plain_loop(paths), ray_recipe(paths)
        bound = f"the floor itself is {floor / plain:.1f} times the loop and {floor / recipe:.1f} times the recipe here"
        figures = [
            *shell_figures(shell, report["seconds"]),
            Figure(
                "job, steady: time to its floor",
                floor / job,
                1.2,
                "embedding alone + inflating, all cores",
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
            "seconds_from_the_shell": shell,
            "waits_s": report["waits_s"],
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
