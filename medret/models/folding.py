"""Batch norms folded into the convolutions before them: in inference both are linear, so one of the two can go.

The fewer passes over large feature maps are worth a quarter of efficientnet_lite0's speed on a CPU, and one rounding
less brings its bf16 vectors a little closer to the float32 ones (bench/embed.py).
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from medret.models.trial import calls

_SAME = 1e-3  # of the output's length: far above float32's rounding, far below a norm that is missing or wrong


def fold_batch_norms(model: nn.Module, image_size: int) -> nn.Module:
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
