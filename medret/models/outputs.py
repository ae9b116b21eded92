"""From a network's outputs to one vector per image: transformers' outputs pooled, inner layers appended."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from medret.errors import UsageError

# Names that transformers gives the parameter of a class token, which stands first among the tokens.
_CLASS_TOKENS = frozenset({"cls_token", "class_embedding", "class_token"})
_HEADS = ("head.", "pooler.")  # a token in them asks the others, and stands not among them
# Outputs that stand for the whole image, of models that have a token for it elsewhere than among the last tokens.
_SUMMARIES = ("summary", "cls_token_value")
# What configurations of detectors and segmenters name: their outputs are of objects, not of the image.
_QUERIES = ("num_queries", "num_object_queries", "num_detection_tokens")
_SAME = 0.9999  # cosine


class Pooled(nn.Module):
    """A transformers vision model that returns one vector an image.

    The pooled output where the model has one with trained weights, else the class token where there is one, else the
    mean over all tokens or positions. What would mask patches at random sees all of them, in order.
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
            return last.mean(_positions(last))
        return last[:, 0] if self._has_class_token else last.mean(1)

    def _order(self, images: Tensor) -> dict[str, Tensor]:
        """Of a masked autoencoder, which sorts patches by noise: noise that leaves them as they are."""
        if not self._masks:
            return {}
        embeddings: Any = self.model.embeddings
        patches = torch.arange(embeddings.patch_embeddings.num_patches, dtype=torch.float32, device=images.device)
        return {"noise": patches.expand(len(images), -1)}


def _positions(features: Tensor) -> tuple[int, int]:
    """Which axes of a feature map of a square image are its positions: two of one length."""
    _, first, second, third = features.shape
    if second == third:
        return 2, 3
    if first == second:
        return 1, 2
    raise ValueError(f"features of shape {tuple(features.shape)} do not tell positions from channels")


def refuse_queries(model: nn.Module, where: str) -> None:
    """Raises UsageError for a model whose outputs answer queries (detectors, encoder-decoders)."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or any(hasattr(config, name) for name in _QUERIES):
        raise UsageError(
            f"{where}: {type(model).__name__} is a detector or an encoder-decoder: its vectors are of objects or of "
            "text, not of the image; name the image encoder it is made of"
        )


@torch.inference_mode()
def check_repeatable(model: nn.Module, image_size: int, what: str) -> None:
    """Raises UsageError unless each of two images gets one vector, the same whenever it is asked for, and wherever."""
    with torch.random.fork_rng(devices=[]):
        images = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        once, again = model(images), model(images.flip(0))
    if len(once) != len(images):
        raise UsageError(f"{what}: gives {len(once)} vectors for {len(images)} images, expected one each")
    lowest = float(cosine_similarity(once.float(), again.flip(0).float()).min())
    if not lowest > _SAME:
        raise UsageError(
            f"{what}: gives one image another vector each time (cosine {lowest:.4f}); nothing can be found with it"
        )


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
