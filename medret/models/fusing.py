"""Conv-BN fusion, and on a CPU layers fused with the activations after them.

Batch norms and convolutions are both linear in inference, so each norm goes into the convolution before it. The fewer
passes over large feature maps are worth a quarter of efficientnet_lite0's speed on a CPU, and one rounding less brings
its bf16 vectors a little closer to the float32 ones (bench/embed.py).

A layer and its activation become one oneDNN call with weights packed beforehand. By itself torch packs the weights of a
bf16 layer in every pass and passes once more over the output for the activation; timm's "same" convolutions, which pad
as TensorFlow does, also copy their input to pad it on one side. torch.compile avoids all this, but needs a C++ compiler
on every node and half a minute in every actor. The operations used here are those that it calls. They are not public,
so their output is compared before they are used.
"""

# ruff: noqa: SLF001  operations without a public name

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# With oneDNN's names and parameters.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
    nn.GELU: ("gelu", []),
}
OPERATIONS: Any = torch.ops.mkldnn
LAYERS = (nn.Conv2d, Conv2dSame, nn.Linear)
# Relative change of the output that is accepted: above what rounding causes, below what a fault causes.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}

Value = tuple[int, int]  # a tensor's identity and its count of in-place changes: equal only for the same content


@dataclass(frozen=True)
class Call:
    """One call of a layer in a trial run. A layer follows another if its input is the other's output.

    shape: of the input.
    """

    name: str
    layer: nn.Module
    input: Value
    output: Value
    shape: tuple[int, ...]


@torch.no_grad()
def trial_run(model: nn.Module, images: Tensor, kinds: tuple[type[nn.Module], ...]) -> tuple[list[Call], Tensor]:
    """Run the model; return the calls of all layers of these kinds, in order, and the model's output.

    Calls that pass their input by keyword are left out. All inputs and outputs are kept in memory until the end, so
    that no two values share an identity: pass few `images`.
    """
    seen: list[Call] = []
    alive: list[Tensor] = []
    inputs_of: dict[str, Value] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, kinds):

            def before(_layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs:
                    alive.append(inputs[0])
                    inputs_of[name] = _value(inputs[0])

            def after(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                if inputs:
                    alive.append(output)
                    seen.append(Call(name, layer, inputs_of[name], _value(output), tuple(inputs[0].shape)))

            hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        output: Tensor = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, output


def _value(tensor: Tensor) -> Value:
    return id(tensor), tensor._version


@torch.no_grad()
def fuse_batch_norms(model: nn.Module, image_size: int, channels: int = 3) -> nn.Module:
    """A model with the same output whose batch norms are fused into the convolutions directly before them.

    model: in float32 on the CPU, for inference of (n, channels, image_size, image_size). A trial run shows which layers
    follow one another. Returns the model itself when there is no such pair, or when a second run shows that its output
    would change, because a convolution also feeds other layers.
    """
    images = torch.rand(1, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return model
    fused = copy.deepcopy(model)
    seen, expected = trial_run(fused, images, (nn.Conv2d, nn.BatchNorm2d))
    convolutions = {call.output: (call.name, call.layer) for call in seen if isinstance(call.layer, nn.Conv2d)}
    for call in seen:
        norm = call.layer
        if call.input not in convolutions or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.affine and norm.track_running_stats:
            name, convolution = convolutions[call.input]
            # In float64, so that each weight is rounded once.
            fused.set_submodule(name, fuse_conv_bn_eval(convolution.double(), copy.deepcopy(norm).double()).float())
            # timm's norms carry the activation that follows them.
            activation = getattr(norm, "act", None)
            fused.set_submodule(call.name, activation if isinstance(activation, nn.Module) else nn.Identity())
    return fused if _is_close(fused(images), expected, TOLERANCE[torch.float32]) else model


class Fused(nn.Module):
    """A layer and its activation in one operation.

    packed: the weights in the operation's own layout. arguments: the rest of what the operation takes.
    """

    def __init__(
        self, operation: Any, layer: nn.Conv2d | nn.Linear, packed: Tensor, arguments: tuple[Any, ...]
    ) -> None:
        super().__init__()
        self._operation, self._packed, self._bias, self._arguments = operation, packed, layer.bias, arguments
        self.dtype = layer.weight.dtype

    def forward(self, features: Tensor) -> Tensor:
        """Compute in the type of the weights, whatever the type of the input."""
        output: Tensor = self._operation(features.to(self.dtype), self._packed, self._bias, *self._arguments)
        return output


def fuse_layers(model: nn.Module, image: Tensor, batch_size: int) -> nn.Module:
    """Fuse convolutions and linear layers with the activations after them, in place; return the model.

    model: on the CPU, for inference of batch_size images. image: (1, 3, height, width), of the type and memory layout
    of real input; a trial run with it shows which layers follow one another. The model stays as it is if this torch
    lacks the operations, or if a second run shows that the output would change.
    """
    if not is_available():
        return model
    seen, expected = trial_run(model, image, (*LAYERS, *ACTIVATIONS))
    try:
        replacements = _replacements(seen, batch_size)
    except RuntimeError:  # oneDNN lacks the type on this processor
        return model
    originals = {name: model.get_submodule(name) for name in replacements}
    _set_layers(model, replacements)
    tolerance = max(
        (TOLERANCE[layer.dtype] for layer in replacements.values() if isinstance(layer, Fused)), default=0.0
    )
    if not _gives(model, image, expected, tolerance):
        _set_layers(model, originals)
    return model


def is_available() -> bool:
    """Whether this torch has the operations."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight", "_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(OPERATIONS, name) for name in names)


@torch.no_grad()
def _replacements(seen: list[Call], batch_size: int) -> dict[str, nn.Module]:
    """Name of a layer -> what replaces it; layers that are called more than once are left alone."""
    times = Counter(call.name for call in seen)
    single = [call for call in seen if call.name and times[call.name] == 1]
    activations = {call.input: call for call in single if type(call.layer) in ACTIVATIONS}
    replacements: dict[str, nn.Module] = {}
    for call in single:
        if not _can_be_fused(call.layer):
            continue
        following, shape = activations.get(call.output), call.shape
        activation = _activation_arguments(following)
        if isinstance(call.layer, nn.Conv2d):
            replacements[call.name] = _convolution(call.layer, [batch_size * shape[0], *shape[1:]], activation)
        elif isinstance(call.layer, nn.Linear):
            replacements[call.name] = _linear(call.layer, batch_size * math.prod(shape[:-1]), activation)
        if following:
            replacements[following.name] = nn.Identity()
    return replacements


def _convolution(layer: nn.Conv2d, shape: list[int], activation: tuple[Any, ...]) -> Fused:
    """shape: of the input."""
    weight, padding = _padded(layer, shape[2:])
    geometry = padding, list(layer.stride), list(layer.dilation), layer.groups
    packed = OPERATIONS._reorder_convolution_weight(weight, *geometry, shape)
    return Fused(OPERATIONS._convolution_pointwise, layer, packed, (*geometry, *activation))


def _linear(layer: nn.Linear, rows: int, activation: tuple[Any, ...]) -> Fused:
    """rows: of the input."""
    packed = OPERATIONS._reorder_linear_weight(layer.weight, rows)
    return Fused(OPERATIONS._linear_pointwise, layer, packed, activation)


def _can_be_fused(layer: nn.Module) -> bool:
    """Decided by the exact class: a derived one may compute something else."""
    if type(layer) not in LAYERS or layer.weight.dtype not in TOLERANCE:
        return False
    if not isinstance(layer, nn.Conv2d):
        return True
    is_plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return is_plain and (type(layer) is nn.Conv2d or layer.dilation == (1, 1))


def _activation_arguments(call: Call | None) -> tuple[Any, ...]:
    """oneDNN's name, parameters and algorithm."""
    if call is None:
        return "none", [], ""
    return *ACTIVATIONS[type(call.layer)], getattr(call.layer, "approximate", "")


def _padded(layer: nn.Conv2d, size: list[int]) -> tuple[Tensor, list[int]]:
    """The weight and the symmetric padding that together do what the layer does to an image of this size.

    "Same" padding may be one pixel wider after an image than before it. A kernel with a first row (or column) of zeros,
    padded equally on both sides, gives the same result.
    """
    weight = layer.weight
    if not isinstance(layer, Conv2dSame):
        assert not isinstance(layer.padding, str)
        return weight, list(layer.padding)
    totals = [
        max(0, (math.ceil(length / stride) - 1) * stride + kernel - length)
        for length, stride, kernel in zip(size, layer.stride, layer.kernel_size, strict=True)
    ]
    top, left = (total % 2 for total in totals)
    padding = [total // 2 + total % 2 for total in totals]
    if top or left:
        layout = (
            torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.preserve_format
        )
        weight = functional.pad(weight, (left, 0, top, 0)).contiguous(memory_format=layout)
    return weight, padding


def _set_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)


@torch.no_grad()
def _gives(model: nn.Module, image: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the model runs and gives the expected output."""
    try:
        output = model(image)
    except (AttributeError, RuntimeError, TypeError):  # code around a layer looks into it, or calls it by keyword
        return False
    return _is_close(output, expected, tolerance)


def _is_close(output: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the distance between the outputs is at most this share of the expected one's length."""
    return bool(torch.dist(output.float(), expected.float()) <= tolerance * expected.float().norm())
