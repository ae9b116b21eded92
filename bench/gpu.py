"""Encoders on a GPU, in bf16: against the bare model, against the chip's roof, together, and how many cores feed them.

    python bench/gpu.py [MODEL ...] [--device cuda] [--json]

Needs no Ray. The roof is the best bf16 matrix product of this run, and FLOP are those of matrix products and
convolutions, so a share of the roof counts nothing else that a model does. Weights are random: they change no speed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare import BareModel, Way, rate, taking_turns
from corpus import corpus
from figures import Figure, Measured, main
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medret.models import Encoder, ModelSpec, default_batch_size, model_spec, resolve_device, resolve_weights
from medret.models.encoder import load_model
from medret.recipe import SliceRecipe
from medret.volume import read_volume

MODELS = ("efficientnet_lite0", "resnet50", "dinov1", "dinov2", "swin", "dreamsim")
TINY_MODELS = ("timm:test_resnet", "timm:test_vit")
BATCHES = (32, 64, 128, 256, 512)
CALL_SLICES = 128  # what an actor of an index run is called with: 8 volumes of 16 slices
ROOF_SIZES = (4096, 8192, 16384)
SLICES_A_VOLUME = 16


def roof_flop_s(device: str, sizes: Sequence[int]) -> float:
    """FLOP per second of the best bf16 matrix product."""
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        product = torch.empty_like(left)
        run = partial(torch.mm, left, right, out=product)
        run()
        best = max(best, *(2 * size**3 * rate(run, 1) for _ in range(5)))
    return best


def flop(spec: ModelSpec) -> int:
    """FLOP of one image."""
    model = load_model(spec, resolve_weights(spec, "random"))
    image = torch.zeros(1, 3, spec.image_size, spec.image_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


def of_one_model(
    spec: ModelSpec, backends: Sequence[str | None], roof: float, arguments: argparse.Namespace
) -> tuple[list[Figure], dict[str, Any]]:
    """One encoder, as it is and compiled; the bare model's best way is searched for once, without compiling."""
    weights, tiny = resolve_weights(spec, "random"), arguments.tiny
    images, batches = (4, (2, 4)) if tiny else (4 * max(BATCHES), BATCHES)
    slices = np.random.default_rng(0).integers(0, 256, (images, spec.image_size, spec.image_size), dtype=np.uint8)
    figures, work = [], flop(spec)
    facts: dict[str, Any] = {"gflop": work / 1e9}
    way: Way | None = None
    for backend in backends:
        name = f"{spec.name}, {'compiled' if backend else 'eager'}"
        bare = BareModel(spec, weights, images, arguments.device, backend)
        if way is None:
            way, facts["tried"] = bare.fastest(("bf16",), batches)
        batch = 2 if tiny else default_batch_size(arguments.device)
        encoder = Encoder(spec, weights, device=arguments.device, precision="bf16", batch_size=batch, backend=backend)
        calls = [slices[at : at + CALL_SLICES] for at in range(0, images, CALL_SLICES)]
        routes: dict[str, Callable[[], object]] = {
            "bare": partial(bare.run, way),
            "fed": partial(encoder.embed, slices),
            "fed in calls": partial(_each, encoder, calls),
            "prepared": partial(_prepare, encoder, slices),
        }
        taking_turns(routes, images, 1)  # compiles, and warms up
        rates = taking_turns(routes, images, 1 if tiny else 5)
        facts[name] = rates
        figures += [
            Figure(f"{name}: fed from uint8 slices", rates["fed"] / rates["bare"], 0.95, f"bare model: {way}"),
            Figure(f"{name}: in an actor's calls", rates["fed in calls"] / rates["bare"], None, f"bare model: {way}"),
            Figure(
                f"{name}: copying and normalising images",
                100 * rates["fed"] / rates["prepared"],
                None,
                "the time of embedding them, if nothing overlapped",
                at_least=False,
                unit="%",
            ),
            Figure(f"{name}: bare", rates["bare"] * work / roof, None, f"roof: matmul {roof / 1e12:.1f} TFLOP/s"),
            Figure(f"{name}: bare", rates["bare"], None, "no bound", unit="img/s"),
        ]
    return figures, facts


def _each(encoder: Encoder, calls: Sequence[Any]) -> None:
    for call in calls:
        encoder.embed(call)


def _prepare(encoder: Encoder, slices: Any) -> None:
    for start in range(0, len(slices), encoder.batch_size):
        encoder.prepare(slices[start : start + encoder.batch_size])


def sharing(names: Sequence[str], device: str, seconds: float, batch: int) -> tuple[Figure, dict[str, Any]]:
    """Models in processes of their own, one after the other and all at once, as an index run's actors are."""
    context = multiprocessing.get_context("spawn" if device == "cuda" else "fork")
    alone = {name: _together(context, [name], device, seconds, batch)[name] for name in names}
    together = _together(context, names, device, seconds, batch)
    gained = sum(together[name] / alone[name] for name in names)
    against = "the same models one after the other"
    return Figure(f"{len(names)} models sharing the device", gained, None, against), {
        "alone": alone,
        "together": together,
    }


def _together(context: Any, names: Sequence[str], device: str, seconds: float, batch: int) -> dict[str, float]:
    """Images per second of each, all running at once."""
    barrier, queue = context.Barrier(len(names)), context.Queue()
    workers = [context.Process(target=_work, args=(name, device, seconds, batch, barrier, queue)) for name in names]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=600) for _ in workers)
    for worker in workers:
        worker.join()
    return found


def _work(name: str, device: str, seconds: float, batch: int, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    spec = model_spec(name)
    encoder = Encoder(spec, resolve_weights(spec, "random"), device=device, precision="bf16", batch_size=batch)
    slices = np.zeros((4 * encoder.batch_size, spec.image_size, spec.image_size), np.uint8)
    encoder.embed(slices)
    barrier.wait(timeout=300)
    start, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        encoder.embed(slices)
        done += len(slices)
    queue.put((name, done / taken))


def decoding(folder: Path, volumes: int) -> float:
    """Slices per second that one core reads from .nii.gz files."""
    recipe, files = SliceRecipe(slices=f"uniform:{SLICES_A_VOLUME}"), sorted(folder.rglob("*.nii.gz"))
    chosen = [path.read_bytes() for path in files[:: max(1, len(files) // volumes)][:volumes]]
    start = time.perf_counter()
    slices = sum(len(read_volume(data, "bench", recipe, [224]).slices) for data in chosen)
    return slices / (time.perf_counter() - start)


def measured(arguments: argparse.Namespace) -> Measured:
    """One model after the other; then together."""
    tiny = arguments.tiny
    names, seconds, batch = arguments.models or MODELS, 5.0, default_batch_size(arguments.device)
    if tiny:
        arguments.device, names, seconds, batch = "cpu", TINY_MODELS, 0.1, 2
        torch.set_num_threads(1)
    share, facts = sharing(names, arguments.device, seconds, batch)
    arguments.device = resolve_device(arguments.device)
    roof = roof_flop_s(arguments.device, (256,) if tiny else ROOF_SIZES)
    with corpus(arguments.data, tiny=tiny) as (folder, data):
        a_core = decoding(folder, 2 if tiny else 24)
    figures = []
    for name in names:
        # without a GPU, the compiler is only shown to be reached
        backends = (None, "eager" if tiny else "inductor")
        more, facts[name] = of_one_model(model_spec(name), backends, roof, arguments)
        best = max(facts[name][key]["fed"] for key in facts[name] if key.startswith(name))
        more.append(Figure(f"{name}: cores to feed it", best / a_core, None, f"one core decodes {a_core:.0f} slices/s"))
        figures += more
    facts |= {
        "data": data,
        "decoded_slices_per_second_and_core": a_core,
        "roof_flop_s": roof,
        "device": arguments.device,
    }
    return Measured([*figures, share], facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"(default {' '.join(MODELS)})")
    parser.add_argument("--data", type=Path, help="of .nii.gz files (default: the real volumes, or phantoms)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(default %(default)s)")
    main(measured, parser)
