"""A trial run of a model: which of its layers are called, in which order, and what they take and give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    return id(tensor), tensor._version  # noqa: SLF001  torch's own count, under no public name
