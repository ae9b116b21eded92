"""From a network's outputs to one vector per image: pool transformers' outputs, append inner layers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from medret.errors import UsageError

# transformers' names for the parameter of a class token, which is the first of the tokens.
_CLASS_TOKENS = frozenset({"cls_token", "class_embedding", "class_token"})
_HEADS = ("head.", "pooler.")  # a token in a head attends to the others and is not one of them
# Outputs that describe the whole image, in models whose class token is not among the last tokens.
_SUMMARIES = ("summary", "cls_token_value")
# Settings of detectors and segmenters, whose outputs describe objects, not the image.
_QUERIES = ("num_queries", "num_object_queries", "num_detection_tokens")
_SAME = 0.9999  # cosine


class Pooled(nn.Module):
    """A transformers vision model that returns one vector per image.

    The vector is the pooled output if the model has one with trained weights, else the class token if there is one,
    else the mean over all tokens or pixels of the feature map. Models that mask patches at random see all of them, in
    order.
    """

    def __init__(self, model: nn.Module, use_pooler: bool) -> None:
        super().__init__()
        self.model = model
        self._summaries = ("pooler_output", *_SUMMARIES) if use_pooler else _SUMMARIES
        names = [name for name, _ in model.named_parameters() if not name.startswith(_HEADS)]
        self._has_class_token = any(name.rpartition(".")[2] in _CLASS_TOKENS for name in names)
        self._masks = "noise" in inspect.signature(model.forward).parameters

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) -> (n, dim)."""
        output = self.model(pixel_values=images, **self._order(images))
        for name in self._summaries:
            summary: Tensor | None = getattr(output, name, None)
            if summary is not None:
                return summary.flatten(2).mean(2) if summary.ndim == 4 else summary.flatten(1)
        last: Tensor | None = getattr(output, "last_hidden_state", None)
        if last is None or last.ndim not in (3, 4):
            raise ValueError(f"{type(self.model).__name__} gives no features of the image")
        if last.ndim == 4:
            return last.mean(_spatial_axes(last))
        return last[:, 0] if self._has_class_token else last.mean(1)

    def _order(self, images: Tensor) -> dict[str, Tensor]:
        """For a masked autoencoder, which sorts patches by noise: ascending noise, which keeps their order."""
        if not self._masks:
            return {}
        embeddings: Any = self.model.embeddings
        patches = torch.arange(embeddings.patch_embeddings.num_patches, dtype=torch.float32, device=images.device)
        return {"noise": patches.expand(len(images), -1)}


def _spatial_axes(features: Tensor) -> tuple[int, int]:
    """The height and width axes of a square image's feature map: two neighbours of equal length."""
    _, first, second, third = features.shape
    if second == third:
        return 2, 3
    if first == second:
        return 1, 2
    raise ValueError(f"features of shape {tuple(features.shape)} do not tell pixels from channels")


def refuse_queries(model: nn.Module, where: str) -> None:
    """Raise UsageError for a model whose outputs answer queries (detectors, encoder-decoders)."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or any(hasattr(config, name) for name in _QUERIES):
        raise UsageError(
            f"{where}: {type(model).__name__} is a detector or an encoder-decoder: its vectors describe objects or "
            "text, not the image; name the image encoder inside it"
        )


@torch.inference_mode()
def check_repeatable(model: nn.Module, image_size: int, what: str) -> None:
    """Raise UsageError unless each image gets one vector, equal in every call and at every place in the batch."""
    with torch.random.fork_rng(devices=[]):
        images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        once, again = model(images), model(images.flip(0))
    if len(once) != len(images):
        raise UsageError(f"{what}: gives {len(once)} vectors for {len(images)} images, expected one each")
    lowest = float(cosine_similarity(once.float(), again.flip(0).float()).min())
    if not lowest > _SAME:
        raise UsageError(
            f"{what}: gives the same image different vectors (cosine {lowest:.4f}); searches need equal ones"
        )


class WithLayers(nn.Module):
    """A model whose output is followed by the spatial means of inner feature maps, in one vector.

    The last layer of a network trained to name objects describes a picture in the words of its training data, an inner
    layer what it looks like. For slices of unfamiliar scanners the second generalises better, and both together best
    (docs/retrieval.md has the measurements).

    layers: names of submodules that give (n, channels, height, width). Each part is scaled to the length of the model's
    output, so that all count equally in a cosine; a zero part stays zero.
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
        output = parts[0].float()
        length = output.norm(dim=1, keepdim=True)
        return torch.cat([output, *(nn.functional.normalize(part, dim=1) * length for part in parts[1:])], dim=1)
