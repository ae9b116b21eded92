"""Features of an inner layer beside a model's output.

The last layer of a network trained to name objects says what is in the picture, in the words of its training data; an
inner one says what it looks like. For slices of other scanners than those at hand the second generalises better, and
both together best (docs/retrieval.md has the measurements).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WithLayers(nn.Module):
    """A model whose vector goes on with the mean over positions of inner feature maps.

    layers: names of submodules that give (n, channels, height, width). Each part is scaled to the length of the model's
    own output, so that all count alike in a cosine; a part that is zero stays zero.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._maps: list[Tensor] = []
        for layer in layers:
            model.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._maps.append(output)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) -> (n, dim of the output + channels of each layer)."""
        self._maps.clear()
        parts = [self.model(images), *(features.mean((2, 3), dtype=torch.float32) for features in self._maps)]
        self._maps.clear()
        own = parts[0].float()
        length = own.norm(dim=1, keepdim=True)
        return torch.cat([own, *(nn.functional.normalize(part, dim=1) * length for part in parts[1:])], dim=1)
