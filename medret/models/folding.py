"""Batch norms folded into the convolutions before them: in inference both are linear, so one of the two can go.

The fewer passes over large feature maps are worth a quarter of efficientnet_lite0's speed on a CPU, and one rounding
less brings its bf16 vectors a little closer to the float32 ones (bench/embed.py).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_SAME = 1e-3  # of the output's length: far above float32's rounding, far below a norm that is missing or wrong


def fold_batch_norms(model: nn.Module, side_px: int) -> nn.Module:
    """A model that gives the same, without the batch norms that directly follow a convolution.

    model: in float32 on the CPU, for inference, of (n, 3, side_px, side_px). Which layers follow one another is seen in
    a trial run. The model itself comes back when it has no such pair, or when a second run shows that folding would
    change it: its convolutions then serve more than their norms.
    """
    images = torch.rand(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return model
    folded = copy.deepcopy(model)
    with torch.no_grad():
        pairs, expected = _trial(folded, images)
        for convolution, norm in pairs:
            _fold(folded.get_submodule(convolution), folded.get_submodule(norm))
            folded.set_submodule(norm, _what_remains(folded.get_submodule(norm)))
        same = torch.dist(folded(images), expected) <= _SAME * expected.norm()
    return folded if same else model


def _trial(model: nn.Module, images: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of the convolutions and norms of which one takes what the other gives, and the model's output."""
    given: dict[int, tuple[str, Tensor]] = {}  # by identity; holding the tensors keeps identities from being used again
    pairs: list[tuple[str, str]] = []
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):

            def keep(_layer: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                given[id(output)] = name, output

            hooks.append(layer.register_forward_hook(keep))
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine and layer.track_running_stats:

            def pair(_layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if id(inputs[0]) in given:
                    pairs.append((given[id(inputs[0])][0], name))

            hooks.append(layer.register_forward_pre_hook(pair))
    output: Tensor = model(images)
    for hook in hooks:
        hook.remove()
    return pairs, output


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    """Give the convolution what the norm does, in place."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
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
