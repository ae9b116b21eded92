"""uint8 slices to vectors: medret's encoder against the bare model at its best, and DreamSim against its own package.

    python bench/embed.py [MODEL ...] [--data FOLDER] [--repeats N] [--json]

The bare model gets float tensors made before the clock starts, in the precision, memory format and batch size that a
search finds to be its fastest here; medret's encoder gets uint8 slices and is made as an index run makes it. Weights
are random where no package carries them, which changes no speed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare import BareModel, taking_turns
from corpus import corpus
from dreamsim_package import published
from figures import Figure, Measured, main
from numpy.typing import NDArray

from medret.models import Encoder, ModelSpec, default_batch_size, model_spec, resolve_precision, resolve_weights
from medret.recipe import SliceRecipe
from medret.volume import read_volume

MODELS = ("efficientnet_lite0", "resnet50", "dinov1", "dinov2", "swin", "dreamsim")
TINY_MODELS = ("efficientnet_lite0", "timm:test_vit")
CARRIED = "efficientnet_lite0"  # the model whose weights a package carries
BATCHES = (2, 4, 8, 16)
SLICES_A_VOLUME = 4
Slices = NDArray[np.uint8]
PRODUCTS = "in fp32 nearly all its time goes to matrix products, which the package too leaves to oneDNN and MKL"


def against_the_bare_model(spec: ModelSpec, slices: Slices, repeats: int) -> tuple[Figure, dict[str, Any]]:
    """The encoder and the bare model, taking turns."""
    weights = resolve_weights(spec, None if spec.name == CARRIED else "random")
    precision = resolve_precision("auto", "cpu")
    encoder = Encoder(spec, weights, precision=precision, batch_size=default_batch_size("cpu"))
    bare = BareModel(spec, weights, len(slices))
    encoder.embed(slices[: encoder.batch_size])
    best, tried = bare.fastest(("bf16", "fp32") if precision == "bf16" else ("fp32",), BATCHES)
    rates = taking_turns(
        {"medret": lambda: encoder.embed(slices), "bare": lambda: bare.run(best)}, len(slices), repeats
    )
    against = f"bare model: {best}" + (", random weights" if weights.random else "")
    facts = {"slices_per_second": rates, "precision": precision, "batch": encoder.batch_size, "tried": tried}
    return Figure(f"embed {spec.name}", rates["medret"] / rates["bare"], 0.95, against), facts


def against_the_package(kind: str, slices: Slices, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """DreamSim from a release's files: medret's encoder and what `dreamsim.dreamsim` makes of them, taking turns."""
    spec = model_spec("dreamsim" if kind == "ensemble" else f"dreamsim_{kind}")
    with published(kind) as (folder, package):
        weights = resolve_weights(spec, str(folder))
        full, half = Encoder(spec, weights), Encoder(spec, weights, precision="bf16")
    images = (torch.from_numpy(slices)[:, None].float() / 255).expand(-1, 3, -1, -1).contiguous()

    @torch.inference_mode()
    def reference() -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = package.embed(images).numpy()
        return vectors

    cosine = float((reference() * full.embed(slices)).sum(1).mean())  # vectors of both are of unit length
    routes: dict[str, Callable[[], object]] = {"package": reference}
    routes |= {"fp32": partial(full.embed, slices), "bf16": partial(half.embed, slices)}
    rates = taking_turns(routes, len(slices), repeats)
    against = "the dreamsim package in fp32, random weights"
    figures = [
        Figure(f"{spec.name} fp32, speed", rates["fp32"] / rates["package"], None, f"{against}; no bound: {PRODUCTS}"),
        Figure(f"{spec.name} fp32, cosine", cosine, 0.9999, against),
        Figure(f"{spec.name} bf16, speed", rates["bf16"] / rates["package"], None, against),
    ]
    return figures, {"slices_per_second": rates}


def read_slices(folder: Path, count: int, image_size: int) -> Slices:
    """`count` slices of volumes spread over the folder, from the first again where there are too few."""
    paths, recipe = sorted(folder.rglob("*.nii.gz")), SliceRecipe(slices=f"uniform:{SLICES_A_VOLUME}")
    volumes = -(-count // SLICES_A_VOLUME)
    chosen = paths[:: max(1, len(paths) // volumes)][:volumes]
    stacks = [read_volume(path.read_bytes(), path.name, recipe, [image_size]).pixels[image_size] for path in chosen]
    return np.resize(np.concatenate(stacks), (count, image_size, image_size))


def measured(arguments: argparse.Namespace) -> Measured:
    """All cores, one model after the other."""
    torch.set_num_threads(1 if arguments.tiny else len(os.sched_getaffinity(0)))
    names = arguments.models or (TINY_MODELS if arguments.tiny else MODELS)
    count, repeats = (2, 1) if arguments.tiny else (16, arguments.repeats)
    figures: list[Figure] = []
    facts: dict[str, Any] = {"threads": torch.get_num_threads()}
    with corpus(arguments.data, tiny=arguments.tiny) as (folder, facts["data"]):
        for spec in map(model_spec, names):
            images = 4 * count if spec.name == CARRIED else count // 2 if spec.family == "dreamsim" else count
            slices = read_slices(folder, images, spec.image_size)
            figure, facts[spec.name] = against_the_bare_model(spec, slices, repeats)
            figures.append(figure)
        if arguments.tiny or "dreamsim" in names:
            kind, slices = "clip_vitb32" if arguments.tiny else "ensemble", read_slices(folder, max(2, count // 2), 224)
            more, facts["dreamsim package"] = against_the_package(kind, slices, repeats)
            figures += more
    return Measured(figures, facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"(default {' '.join(MODELS)})")
    parser.add_argument("--data", type=Path, help="of .nii.gz files (default: the real volumes, or phantoms)")
    parser.add_argument("--repeats", type=int, default=3, help="(default %(default)s)")
    main(measured, parser)
