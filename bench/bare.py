"""A model run by itself over float tensors made before the clock starts: what embedding is compared with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from medret.models import ModelSpec, Weights
from medret.models.encoder import is_convolutional, load_model

LAYOUTS: dict[str, Any] = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Way:
    """How a model is run."""

    precision: str
    layout: str
    batch: int

    def __str__(self) -> str:
        return f"{self.precision}, {self.layout}, batch {self.batch}"


class BareModel:
    """The module that medret loads, as torch runs it. backend: of torch.compile; None runs the module as it is."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, images: int, device: str = "cpu", backend: str | None = None
    ) -> None:
        self._spec, self._weights, self.images = spec, weights, images
        self._device, self._backend = device, backend
        self._made: dict[tuple[str, str], tuple[nn.Module, Tensor]] = {}

    def run(self, way: Way) -> None:
        """All images, once."""
        model, images = self._prepared(way)
        with torch.inference_mode():
            for start in range(0, self.images, way.batch):
                model(images[start : start + way.batch])

    def fastest(self, precisions: Sequence[str], batches: Sequence[int]) -> tuple[Way, dict[str, float]]:
        """The best way, and images per second of all tried: precision and layout first, at the middle batch size."""
        fitting = [batch for batch in batches if batch <= self.images]
        layouts = LAYOUTS if is_convolutional(load_model(self._spec, self._weights)) else ("contiguous",)
        middle = fitting[len(fitting) // 2]
        tried = {
            way: self._rate(way) for way in (Way(*pair, middle) for pair in itertools.product(precisions, layouts))
        }
        best = max(tried, key=lambda way: tried[way])
        self._made = {key: made for key, made in self._made.items() if key == (best.precision, best.layout)}
        ways = [replace(best, batch=batch) for batch in fitting if batch != middle]
        tried |= {way: self._rate(way) for way in ways}
        return max(tried, key=lambda way: tried[way]), {str(way): round(found, 2) for way, found in tried.items()}

    def _rate(self, way: Way) -> float:
        model, images = self._prepared(way)
        with torch.inference_mode():
            model(images[: way.batch])
        return rate(lambda: self.run(way), self.images)

    def _prepared(self, way: Way) -> tuple[nn.Module, Tensor]:
        key = way.precision, way.layout
        if key not in self._made:
            layout, dtype, side = LAYOUTS[way.layout], PRECISIONS[way.precision], self._spec.image_size
            model: Any = load_model(self._spec, self._weights).to(self._device, dtype).to(memory_format=layout)
            model = torch.compile(model, backend=self._backend) if self._backend else model
            # DreamSim normalises float32 images by itself and rounds them then
            taken = torch.float32 if self._spec.family == "dreamsim" else dtype
            images = torch.randn(self.images, 3, side, side, dtype=taken, device=self._device)
            self._made[key] = model, images.contiguous(memory_format=layout)
        return self._made[key]


def rate(run: Callable[[], object], images: int) -> float:
    """Images per second of one pass, to the end of what it has queued on a GPU."""
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return images / (time.perf_counter() - start)


def taking_turns(routes: dict[str, Callable[[], object]], images: int, repeats: int) -> dict[str, float]:
    """Images per second of each route: its best pass of `repeats`, the routes taking turns."""
    best = dict.fromkeys(routes, 0.0)
    for _ in range(repeats):
        for name, run in routes.items():
            best[name] = max(best[name], rate(run, images))
    return best


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
