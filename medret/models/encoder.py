"""From a spec and its weights to a torch module, and slices to vectors on one device, in float32 or bf16.

bf16 is used where it is faster, float32 where bf16 would show. Transformers are cast whole: torch keeps the sums of
their norms and softmaxes in float32. Convolutional networks run under autocast, their batch norms in float32.
MobileNet-like networks also keep all convolutions up to the first depthwise one in float32: it mixes few values of a
large image with few weights, and its rounding goes through all that follows. Measured with ImageNet weights on slices
of CT, MRI and PET: cast whole, efficientnet_lite0's vectors have mean cosine 0.996 to its float32 ones; this way 0.999,
at nine tenths of the speed and twice that of float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medret.errors import WeightsError, needs_extra
from medret.models.fusing import fuse_batch_norms, fuse_layers
from medret.models.spec import Family, ModelSpec
from medret.models.weights import Weights, check_weights
from medret.recipe import Precision, stack_dtype, stack_shape


def load_model(spec: ModelSpec, weights: Weights) -> nn.Module:
    """Load the model in float32 on the CPU, ready for inference.

    It maps (n, channels, side, side) float32, normalised as the spec's contract says, to (n, dim). Raises WeightsError
    when the files have changed since they were resolved, are damaged, or hold another model.
    """
    if weights.model != spec.name:
        raise WeightsError(f"these are weights of {weights.model}, not of {spec.name}")
    check_weights(weights)
    with needs_extra():
        model = _loader(spec.family)(spec, weights)
    return model.eval().requires_grad_(False)


def _loader(family: Family) -> Callable[[ModelSpec, Weights], nn.Module]:
    if family == "timm":
        from medret.models.timm_models import load_timm

        return load_timm
    if family == "dreamsim":
        from medret.models.dreamsim import load_dreamsim

        return load_dreamsim
    if family == "open_clip":
        from medret.models.timm_models import load_open_clip

        return load_open_clip
    if family == "package":
        from medret.models.checkpoint import load_packaged

        return load_packaged
    from medret.models.hf_models import load_hf

    return load_hf


class Encoder:
    """A model on a device, with one static batch shape: every forward pass takes `batch_size` slices.

    With a constant shape a slice's vector does not depend on its place in a batch or on the other slices, and compiled
    kernels fit.
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
        """Load the model. Raises WeightsError when the weights are not the model's.

        device: from `resolve_device`.
        threads: of torch, in each thread that calls `embed`; None keeps torch's default.
        backend: of torch.compile, such as `inductor`; None does not compile.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self._threads, self._told = threads, threading.local()
        self._tell_torch()
        self.spec, self.batch_size = spec, batch_size
        self._device = torch.device(device)
        model = load_model(spec, weights)
        # Convolutions are faster over channels-last data, on the CPU and on tensor cores.
        self._layout = torch.channels_last if is_convolutional(model) else torch.contiguous_format
        model = fuse_batch_norms(model, spec.image_size, spec.contract.channels) if spec.fuse_bn else model
        model = model.to(self._device).to(memory_format=self._layout)
        model = in_bf16(model) if precision == "bf16" else model
        # A model that takes float32 rounds later: under autocast per layer, in DreamSim after a branch normalises.
        takes_float32 = isinstance(model, Autocast) or spec.family == "dreamsim" or precision == "fp32"
        self._input_dtype = torch.float32 if takes_float32 else torch.bfloat16
        if self._device.type == "cpu" and backend is None:
            image = torch.rand(1, *spec.input_shape, generator=torch.Generator().manual_seed(0))
            model = fuse_layers(model, image.to(dtype=self._input_dtype, memory_format=self._layout), batch_size)
        run: Any = torch.compile(model, backend=backend) if backend else model
        self._model: nn.Module = run
        channels, white = spec.contract.channels, 255 if spec.contract.values == "grey" else 1
        mean = torch.tensor(spec.mean[:channels], device=self._device).view(1, channels, 1, 1)
        std = torch.tensor(spec.std[:channels], device=self._device).view(1, channels, 1, 1)
        self._gain, self._offset = 1 / (white * std), -mean / std

    def embed(self, slices: NDArray[Any]) -> NDArray[np.float32]:
        """Images as the contract says, plain ones (n, side, side) uint8 -> (n, dim) float32, not normalised.

        n may be 0. Threads may call it side by side.
        """
        self._tell_torch()
        dtype, shape = stack_dtype(self.spec.images), stack_shape(self.spec.images)
        if slices.dtype != dtype or slices.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"slices are {slices.dtype} {slices.shape}, expected {dtype} (n, {expected})")
        if len(slices) == 0:
            return np.empty((0, self.spec.dim), np.float32)
        starts = range(0, len(slices), self.batch_size)
        parts = [self._forward(slices[start : start + self.batch_size]) for start in starts]
        return torch.cat(parts).cpu().numpy()  # one transfer, after all batches are queued

    def _tell_torch(self) -> None:
        """OpenMP, and with it torch, keeps a number of threads for each thread that computes."""
        if self._threads is not None and not hasattr(self._told, "once"):
            torch.set_num_threads(self._threads)
            self._told.once = True

    @torch.inference_mode()
    def _forward(self, slices: NDArray[Any]) -> torch.Tensor:
        """At most batch_size slices -> (n, dim) float32 on the device. Zeros fill up the batch and are cut off."""
        vectors: torch.Tensor = self._model(self.prepare(slices))
        if vectors.shape != (self.batch_size, self.spec.dim):
            raise WeightsError(
                f"{self.spec.name}: gives {tuple(vectors.shape)}, expected {(self.batch_size, self.spec.dim)}"
            )
        return vectors[: len(slices)].float()

    @torch.inference_mode()
    def prepare(self, slices: NDArray[Any]) -> Tensor:
        """At most batch_size slices -> (batch_size, channels, side, side) on the device, as the network takes them."""
        shape, pinned = (self.batch_size, *slices.shape[1:]), self._device.type == "cuda"
        dtype = torch.uint8 if slices.dtype == np.uint8 else torch.float32
        batch = torch.zeros(shape, dtype=dtype, pin_memory=pinned)  # pinned memory is copied while the GPU computes
        batch.numpy()[: len(slices)] = slices
        images = self._normalised(batch.to(self._device, non_blocking=True).to(torch.float32))
        return images.to(dtype=self._input_dtype, memory_format=self._layout)

    def _normalised(self, batch: Tensor) -> Tensor:
        """Images -> (n, channels, side, side) as the network takes them."""
        images = batch if batch.ndim == 4 else batch[:, None]
        if self.spec.contract.normalise == "fixed":
            return torch.addcmul(self._offset, images, self._gain)
        std, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
        images = (images - mean) / torch.where(std > 0, std, 1)  # a constant image is only centred
        return images.expand(-1, self.spec.contract.channels, -1, -1)


_Convolution = nn.modules.conv._ConvNd  # noqa: SLF001  the base of all convolutions has no public name


class Float32(nn.Module):
    """A layer that computes in float32 inside an autocast region."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """Any floating-point input, float32 output."""
        with torch.autocast(images.device.type, enabled=False):
            output: Tensor = self.layer(images.float())
        return output


class Autocast(nn.Module):
    """A model under autocast: matrix products in bf16, other layers as autocast chooses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """float32 input, bf16 or float32 output."""
        with torch.autocast(images.device.type, torch.bfloat16):
            output: Tensor = self.model(images)
        return output


def is_convolutional(model: nn.Module) -> bool:
    """Whether the model is a convolutional network; a transformer's patch embedding does not make it one."""
    return any(isinstance(layer, nn.BatchNorm2d) or _is_depthwise(layer) for layer in model.modules())


def in_bf16(model: nn.Module) -> nn.Module:
    """Change the model, in place, to compute in bf16. It takes float32 images or, if cast whole, bf16 ones."""
    if not is_convolutional(model):
        return model.to(torch.bfloat16)
    names = [name for name, layer in model.named_modules() if isinstance(layer, _Convolution)]
    first = next((number for number, name in enumerate(names) if _is_depthwise(model.get_submodule(name))), -1)
    for name in names[: first + 1]:
        model.set_submodule(name, Float32(model.get_submodule(name)))
    kept = {id(layer.layer) for layer in model.modules() if isinstance(layer, Float32)}
    for layer in model.modules():  # cast once here, not by autocast in every pass
        if isinstance(layer, _Convolution | nn.Linear) and id(layer) not in kept:
            layer.to(torch.bfloat16)
    return Autocast(model)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _Convolution) and layer.groups == layer.in_channels > 1
