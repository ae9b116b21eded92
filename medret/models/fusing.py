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

# ruff: noqa: SLF001  operations under no public name
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

# As oneDNN names them, with their numbers.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
    nn.GELU: ("gelu", []),
}
OPERATIONS: Any = torch.ops.mkldnn
LAYERS = (nn.Conv2d, Conv2dSame, nn.Linear)
# Of the output's length: more than rounding moves it, less than a fault does.
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.05}


class Fused(nn.Module):
    """A layer and its activation in one operation. packed: the weights as it wants them. how: what it takes further."""

    def __init__(self, operation: Any, layer: nn.Conv2d | nn.Linear, packed: Tensor, how: tuple[Any, ...]) -> None:
        super().__init__()
        self._operation, self._packed, self._bias, self._how = operation, packed, layer.bias, how
        self.dtype = layer.weight.dtype

    def forward(self, features: Tensor) -> Tensor:
        """Computes in the type of the weights, whatever comes."""
        output: Tensor = self._operation(features.to(self.dtype), self._packed, self._bias, *self._how)
        return output


def fuse_layers(model: nn.Module, image: Tensor, batch_size: int) -> nn.Module:
    """The model, changed in place, with its convolutions and linear layers fused with the activations after them.

    model: on the CPU, for inference of batch_size images. image: (1, 3, height, width), of the type and layout that it
    will take; which layers follow one another is seen in a trial run with it. The model stays as it is where this torch
    lacks the operations, or where a second run shows that the output would change.
    """
    if not is_available():
        return model
    seen, expected = calls(model, image, (*LAYERS, *ACTIVATIONS))
    try:
        changed = _fused(seen, batch_size)
    except RuntimeError:  # oneDNN lacks the type on this processor
        return model
    before = {name: model.get_submodule(name) for name in changed}
    _swap(model, changed)
    near = max((SAME[layer.dtype] for layer in changed.values() if isinstance(layer, Fused)), default=0.0)
    if not _gives(model, image, expected, near):
        _swap(model, before)
    return model


def is_available() -> bool:
    """Whether this torch has the operations."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight", "_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(OPERATIONS, name) for name in names)


@torch.no_grad()
def _fused(seen: list[Call], batch_size: int) -> dict[str, nn.Module]:
    """What to put in the place of which layer; nothing for those that are called more than once."""
    times = Counter(call.name for call in seen)
    single = [call for call in seen if call.name and times[call.name] == 1]
    following = {call.taken: call for call in single if type(call.layer) in ACTIVATIONS}
    changed: dict[str, nn.Module] = {}
    for call in single:
        if not _can_be_fused(call.layer):
            continue
        after, shape = following.get(call.given), call.shape
        activation = _activation(after)
        if isinstance(call.layer, nn.Conv2d):
            changed[call.name] = _convolution(call.layer, [batch_size * shape[0], *shape[1:]], activation)
        elif isinstance(call.layer, nn.Linear):
            changed[call.name] = _linear(call.layer, batch_size * math.prod(shape[:-1]), activation)
        if after:
            changed[after.name] = nn.Identity()
    return changed


def _convolution(layer: nn.Conv2d, shape: list[int], activation: tuple[Any, ...]) -> Fused:
    """shape: of what it will take."""
    weight, padding = _padded(layer, shape[2:])
    how = padding, list(layer.stride), list(layer.dilation), layer.groups
    packed = OPERATIONS._reorder_convolution_weight(weight, *how, shape)
    return Fused(OPERATIONS._convolution_pointwise, layer, packed, (*how, *activation))


def _linear(layer: nn.Linear, rows: int, activation: tuple[Any, ...]) -> Fused:
    """rows: of what it will take."""
    packed = OPERATIONS._reorder_linear_weight(layer.weight, rows)
    return Fused(OPERATIONS._linear_pointwise, layer, packed, activation)


def _can_be_fused(layer: nn.Module) -> bool:
    """By its exact class: one derived from it may do something else."""
    if type(layer) not in LAYERS or layer.weight.dtype not in SAME:
        return False
    if not isinstance(layer, nn.Conv2d):
        return True
    is_plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return is_plain and (type(layer) is nn.Conv2d or layer.dilation == (1, 1))


def _activation(call: Call | None) -> tuple[Any, ...]:
    """Name, numbers, algorithm."""
    if call is None:
        return "none", [], ""
    return *ACTIVATIONS[type(call.layer)], getattr(call.layer, "approximate", "")


def _padded(layer: nn.Conv2d, size: list[int]) -> tuple[Tensor, list[int]]:
    """The weight and the symmetric padding that together do what the layer does to an image of this size.

    "Same" padding may be one wider after an image than before it. A kernel with a first row (or column) of zeros and as
    much padding on both sides gives the same.
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


def _swap(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)


@torch.no_grad()
def _gives(model: nn.Module, image: Tensor, expected: Tensor, near: float) -> bool:
    """Whether the model gives what is expected, within a share of its length."""
    try:
        output = model(image)
    except (AttributeError, RuntimeError, TypeError):  # code around a layer looks into it, or calls it by keyword
        return False
    return bool(torch.dist(output.float(), expected.float()) <= near * expected.float().norm())


_SAME = 1e-3  # of the output's length: far above float32's rounding, far below a norm that is missing or wrong


def fuse_batch_norms(model: nn.Module, image_size: int) -> nn.Module:
    """A model that gives the same, without the batch norms that directly follow a convolution.

    model: in float32 on the CPU, for inference, of (n, 3, image_size, image_size). A trial run shows which layers
    follow one another. The model itself comes back when it has no such pair, or when a second run shows that
    folding would change it: its convolutions then serve more than their norms.
    """
    images = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return model
    folded = copy.deepcopy(model)
    with torch.no_grad():
        seen, expected = calls(folded, images, (nn.Conv2d, nn.BatchNorm2d))
        given = {call.given: call.layer for call in seen if isinstance(call.layer, nn.Conv2d)}
        for call in seen:
            convolution, norm = given.get(call.taken), call.layer
            if convolution and isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats:
                _fold(convolution, norm)
                folded.set_submodule(call.name, _what_remains(norm))
        same = torch.dist(folded(images), expected) <= _SAME * expected.norm()
    return folded if same else model


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give the convolution what the norm does, in place."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    before = 0.0 if convolution.bias is None else convolution.bias.double()
    bias = (before - norm.running_mean.double()) * gain + norm.bias.double()
    weight = convolution.weight.double() * gain.view(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(weight.float(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.float(), requires_grad=False)


def _what_remains(norm: nn.Module) -> nn.Module:
    """timm's norms carry the activation that follows them."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


Value = tuple[int, int]  # a tensor's identity, and how often it was changed in place: equal for the same content only


@dataclass(frozen=True)
class Call:
    """One call of a layer. A layer follows another if it takes what that gave. shape: of what it takes."""

    name: str
    layer: nn.Module
    taken: Value
    given: Value
    shape: tuple[int, ...]


@torch.no_grad()
def calls(model: nn.Module, images: Tensor, kinds: tuple[type[nn.Module], ...]) -> tuple[list[Call], Tensor]:
    """The calls of all layers of these kinds while the model runs, in order, and the model's output.

    Calls that name what they give a layer are not among them. All that layers take and give is kept until the end, so
    that no two values look the same: `images` should be few.
    """
    seen: list[Call] = []
    kept: list[Tensor] = []
    taken: dict[str, Value] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, kinds):

            def before(_layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs:
                    kept.append(inputs[0])
                    taken[name] = _value(inputs[0])

            def after(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                if inputs:
                    kept.append(output)
                    seen.append(Call(name, layer, taken[name], _value(output), tuple(inputs[0].shape)))

            hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        output: Tensor = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, output


def _value(tensor: Tensor) -> Value:
    return id(tensor), tensor._version
