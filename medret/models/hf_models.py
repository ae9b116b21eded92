"""`hf:` models: transformers' own class for a configuration, filled from a file, never running code from the hub.

Their outputs are pooled to one vector per image.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from medret.errors import UsageError, WeightsError, first_line
from medret.models.checkpoint import build, read_json, read_state
from medret.models.spec import ModelSpec
from medret.models.weights import Weights

_SHOWN = 4
# transformers' names for the parameter of a class token, which is the first of the tokens.
_CLASS_TOKENS = frozenset({"cls_token", "class_embedding", "class_token"})
_HEADS = ("head.", "pooler.")  # a token in a head attends to the others and is not one of them
# Outputs that describe the whole image, in models whose class token is not among the last tokens.
_SUMMARIES = ("summary", "cls_token_value")
# Settings of detectors and segmenters, whose outputs describe objects, not the image.
_QUERIES = ("num_queries", "num_object_queries", "num_detection_tokens")
_SAME = 0.9999  # cosine
_NOT_ARCHITECTURE = frozenset({"auto_map", "attn_implementation", "quantization_config", "dtype", "torch_dtype"})


def vision_config(content: dict[str, Any], where: str) -> Any:
    """The configuration of the image model; for an image-text model, that of its image tower.

    Raises UsageError when transformers itself has no such type of model, or refuses the values.
    """
    kind = str(content.get("model_type"))
    plain = {key: value for key, value in _plain(content).items() if key != "model_type"}
    if kind not in transformers.CONFIG_MAPPING:
        raise UsageError(
            f"{where}: transformers {transformers.__version__} has no model of type '{kind}', and medret does not run "
            "code that comes with weights"
        )
    try:
        config = transformers.AutoConfig.for_model(kind, **plain)
    except Exception as error:
        raise UsageError(f"{where}: config.json does not fit {kind}: {' '.join(str(error).split())}") from error
    config = getattr(config, "vision_config", config)
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # masked autoencoders hide patches, which only training needs
    return config


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the keys that select code, kernels or a number format."""
    kept = {key: value for key, value in content.items() if not key.startswith("_") and key not in _NOT_ARCHITECTURE}
    return {key: _plain(value) if isinstance(value, dict) else value for key, value in kept.items()}


def build_hf(config: Any, where: str) -> nn.Module:
    """Build the module for a configuration, randomly initialised. Raises UsageError if it does not describe images."""
    try:
        auto: Any = transformers.AutoModel
        model: nn.Module = auto.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError) as error:
        raise UsageError(f"{where}: transformers cannot build it: {first_line(error)}") from error
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise UsageError(f"{where}: {type(model).__name__} takes {getattr(model, 'main_input_name', '?')}, not images")
    if getattr(model.config, "is_encoder_decoder", False) or any(hasattr(model.config, name) for name in _QUERIES):
        raise UsageError(
            f"{where}: {type(model).__name__} is a detector or an encoder-decoder: its vectors describe objects or "
            "text, not the image; name the image encoder inside it"
        )
    return model


def build_pooled(config: Any, where: str) -> Pooled:
    """`build_hf`, pooled to one vector per image."""
    return Pooled(build_hf(config, where), use_pooler=True)


def load_hf(spec: ModelSpec, weights: Weights) -> nn.Module:
    """Build the module and load its weights. Raises WeightsError or UsageError."""
    if weights.random:
        config = vision_config(json.loads(spec.config_json or "{}"), spec.name)
        model: Pooled = build(weights, lambda: build_pooled(config, spec.name))
    else:
        model = _filled(spec, weights)
    check_repeatable(model.eval(), spec.image_size, spec.name)
    return model


def _filled(spec: ModelSpec, weights: Weights) -> Pooled:
    path = weights.files["weights"]
    config = vision_config(read_json(weights.files["config"], f"weights {weights.files['config']}"), spec.name)
    with torch.device("meta"):
        model_class: Any = type(build_hf(config, spec.name))
    state = {key: value.float() if value.is_floating_point() else value for key, value in read_state(path).items()}
    try:
        with _quiet():
            model, loaded = model_class.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise WeightsError(f"weights {path}: not a checkpoint of {spec.name}: {first_line(error)}") from error
    missing = sorted(loaded["missing_keys"])
    untrained = [key for key in missing if not key.startswith("pooler.") and not key.endswith("num_batches_tracked")]
    shaped = [str(key[0]) if isinstance(key, tuple) else str(key) for key in loaded["mismatched_keys"]]
    if untrained or shaped:
        raise WeightsError(
            f"weights {path}: not a checkpoint of {spec.name}: {len(untrained)} missing "
            f"({', '.join(untrained[:_SHOWN])}), {len(shaped)} of another shape ({', '.join(shaped[:_SHOWN])})"
        )
    return Pooled(model, use_pooler=not any(key.startswith("pooler.") for key in missing))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing keys and progress: `_filled` checks what matters of them."""
    from transformers.utils import logging as log

    logging: Any = log
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.ERROR + 10)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


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
