"""uint8 slices to vectors, on one device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medret.errors import WeightsError
from medret.models.folding import fold_batch_norms
from medret.models.fusing import fuse_layers
from medret.models.loaders import load_model
from medret.models.precision import Autocast, in_bf16, is_convolutional
from medret.models.spec import ModelSpec
from medret.models.staging import Weights
from medret.recipe import Precision


class Encoder:
    """A model on a device, with one static batch shape: every forward pass sees `batch_size` slices.

    A shape that never changes keeps a slice's vector the same wherever it stands and whatever stands beside it, and
    suits compiled kernels.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        batch_size: int = 8,
        threads: int | None = None,
        backend: str | None = None,
    ) -> None:
        """device: as `resolve_device` gives it. threads: of torch in this process; None leaves torch's choice.

        backend: of torch.compile, such as `inductor`; None runs the model as it is.

        Raises WeightsError when the weights are not those of the model.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if threads is not None:
            torch.set_num_threads(threads)
        self.spec, self.batch_size = spec, batch_size
        self._device = torch.device(device)
        model = load_model(spec, weights)
        # convolutions are faster over channels-last data, on the CPU and on tensor cores
        self._layout = torch.channels_last if is_convolutional(model) else torch.contiguous_format
        model = fold_batch_norms(model, spec.image_size) if spec.fold_norms else model
        model = model.to(self._device).to(memory_format=self._layout)
        model = in_bf16(model) if precision == "bf16" else model
        # what takes float32 rounds later: under autocast layer by layer, in DreamSim after each branch's normalisation
        takes_float32 = isinstance(model, Autocast) or spec.family == "dreamsim" or precision == "fp32"
        self._input_dtype = torch.float32 if takes_float32 else torch.bfloat16
        if self._device.type == "cpu" and backend is None:
            image = torch.rand(1, 3, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))
            model = fuse_layers(model, image.to(dtype=self._input_dtype, memory_format=self._layout), batch_size)
        run: Any = torch.compile(model, backend=backend) if backend else model
        self._model: nn.Module = run
        mean = torch.tensor(spec.mean, device=self._device).view(1, 3, 1, 1)
        std = torch.tensor(spec.std, device=self._device).view(1, 3, 1, 1)
        self._gain, self._offset = 1 / (255 * std), -mean / std

    def embed(self, slices: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, side, side) uint8 -> (n, dim) float32, as the model gives them, not normalised. n may be 0."""
        side = self.spec.image_size
        if slices.dtype != np.uint8 or slices.ndim != 3 or slices.shape[1:] != (side, side):
            raise ValueError(f"slices are {slices.dtype} {slices.shape}, expected uint8 (n, {side}, {side})")
        if len(slices) == 0:
            return np.empty((0, self.spec.dim), np.float32)
        starts = range(0, len(slices), self.batch_size)
        parts = [self._forward(slices[start : start + self.batch_size]) for start in starts]
        return torch.cat(parts).cpu().numpy()  # one transfer, after all batches are queued

    @torch.inference_mode()
    def _forward(self, slices: NDArray[np.uint8]) -> torch.Tensor:
        """At most batch_size slices -> (n, dim) float32 on the device; the rest of the batch is zeros, cut off."""
        shape, pinned = (self.batch_size, *slices.shape[1:]), self._device.type == "cuda"
        batch = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)  # pinned, it travels while the GPU computes
        batch.numpy()[: len(slices)] = slices
        grey = batch.to(self._device, non_blocking=True)[:, None].to(torch.float32)
        images = torch.addcmul(self._offset, grey, self._gain)
        vectors: torch.Tensor = self._model(images.to(dtype=self._input_dtype, memory_format=self._layout))
        if vectors.shape != (self.batch_size, self.spec.dim):
            raise WeightsError(
                f"{self.spec.name}: gives {tuple(vectors.shape)}, expected {(self.batch_size, self.spec.dim)}"
            )
        return vectors[: len(slices)].float()
