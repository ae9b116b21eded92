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
from medret.models.model_input import read_processor
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


def vision_config(content: dict[str, Any], where: str, *, whole: bool = False) -> Any:
    """The configuration of the image model; for an image-text model, that of its image tower unless it is `whole`.

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
    if not whole:
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


def build_pooled(content: dict[str, Any], where: str, pooling: str = "default") -> nn.Module:
    """The module for a config.json, randomly initialised, pooled to one vector per image."""
    if pooling == "projection":
        return Projected(build_towers(content, where))
    return Pooled(build_hf(vision_config(content, where), where), True, pooling)


def build_towers(content: dict[str, Any], where: str) -> nn.Module:
    """An image-text model with both towers, randomly initialised. Raises UsageError for any other model."""
    config = vision_config(content, where, whole=True)
    auto: Any = transformers.AutoModel
    model: nn.Module = auto.from_config(config, trust_remote_code=False)
    if not all(hasattr(model, name) for name in ("vision_model", "get_image_features", "get_text_features")):
        raise UsageError(f"{where}: {type(model).__name__} has no projection into a space shared with words")
    return model


def load_hf(spec: ModelSpec, weights: Weights) -> nn.Module:
    """Build the module and load its weights. Raises WeightsError or UsageError."""
    pooling = spec.contract.pooling
    model: nn.Module
    if weights.random:
        content = json.loads(spec.config_json or "{}")
        model = build(weights, lambda: build_pooled(content, spec.name, pooling))
    else:
        check_processor(spec, weights)
        content = read_config(weights)
        if pooling == "projection":
            model = Projected(load_towers(spec, weights))
        else:
            config = vision_config(content, spec.name)
            with torch.device("meta"):
                kind = type(build_hf(config, spec.name))
            inner, missing = filled(spec, weights, kind, config)
            use_pooler = not any(key.startswith("pooler.") for key in missing)
            model = Pooled(inner, use_pooler, pooling)
    check_repeatable(model.eval(), spec.image_size, spec.name, spec.contract.channels)
    return model


def load_towers(spec: ModelSpec, weights: Weights) -> nn.Module:
    """An image-text model with both towers and their weights. Raises WeightsError or UsageError."""
    if weights.random:
        content = json.loads(spec.config_json or "{}")
        return build(weights, lambda: build_towers(content, spec.name))
    content = read_config(weights)
    with torch.device("meta"):
        kind = type(build_towers(content, spec.name))
    return filled(spec, weights, kind, vision_config(content, spec.name, whole=True))[0]


def read_config(weights: Weights) -> dict[str, Any]:
    """The config.json among a model's weights."""
    return read_json(weights.files["config"], f"weights {weights.files['config']}")


def check_processor(spec: ModelSpec, weights: Weights) -> None:
    """Raise WeightsError if the processor's file among the weights says otherwise than the model known by name."""
    path = weights.files.get("processor")
    if path is None:
        return
    content = read_json(path, f"weights {path}")
    fed = read_processor(content.get("image_processor", content), spec.image_size, spec.name)
    says = {"image_size": fed.image_size, "mean": fed.mean, "std": fed.std, "normalise": fed.contract.normalise}
    ours = {"image_size": spec.image_size, "mean": spec.mean, "std": spec.std, "normalise": spec.contract.normalise}
    wrong = [key for key, value in says.items() if not _same(value, ours[key])]
    if wrong:
        listed = ", ".join(f"{key} {says[key]} instead of {ours[key]}" for key in wrong)
        raise WeightsError(
            f"weights {path}: they are fed otherwise than {spec.name}: {listed}; use them as hf:OWNER/NAME, "
            "which reads this file"
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(abs(first - second) < 1e-4 for first, second in zip(one, other, strict=True))
    return bool(one == other)


def filled(spec: ModelSpec, weights: Weights, model_class: Any, config: Any) -> tuple[nn.Module, list[str]]:
    """A transformers model with the values of a checkpoint; also the names of tensors that the file lacks."""
    path = weights.files["weights"]
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
    return model, missing


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
    else the mean over all tokens or pixels of the feature map; or what `pooling` names (medret.recipe.Contract). Models
    that mask patches at random see all of them, in order.
    """

    def __init__(self, model: nn.Module, use_pooler: bool, pooling: str = "default") -> None:
        super().__init__()
        self.model, self._pooling, self._use_pooler = model, pooling, use_pooler
        self._summaries = ("pooler_output", *_SUMMARIES) if use_pooler else _SUMMARIES
        names = [name for name, _ in model.named_parameters() if not name.startswith(_HEADS)]
        self._has_class_token = any(name.rpartition(".")[2] in _CLASS_TOKENS for name in names)
        self._masks = "noise" in inspect.signature(model.forward).parameters

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) -> (n, dim)."""
        output = self.model(pixel_values=images, **self._order(images))
        if self._pooling in ("cls", "mean"):
            return self._of_tokens(output)
        if self._pooling == "pooler" and (not self._use_pooler or getattr(output, "pooler_output", None) is None):
            raise UsageError(f"{type(self.model).__name__} has no pooled output with trained weights")
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

    def _of_tokens(self, output: Any) -> Tensor:
        """The class token, or the mean over the patches: not over the class token and registers before them."""
        tokens: Tensor | None = getattr(output, "last_hidden_state", None)
        if tokens is None or tokens.ndim != 3 or (self._pooling == "cls" and not self._has_class_token):
            raise UsageError(f"{type(self.model).__name__} has no {self._pooling} of tokens")
        if self._pooling == "cls":
            return tokens[:, 0]
        config: Any = self.model.config
        return tokens[:, int(self._has_class_token) + (getattr(config, "num_register_tokens", 0) or 0) :].mean(1)

    def _order(self, images: Tensor) -> dict[str, Tensor]:
        """For a masked autoencoder, which sorts patches by noise: ascending noise, which keeps their order."""
        if not self._masks:
            return {}
        embeddings: Any = self.model.embeddings
        patches = torch.arange(embeddings.patch_embeddings.num_patches, dtype=torch.float32, device=images.device)
        return {"noise": patches.expand(len(images), -1)}


class Projected(nn.Module):
    """The image tower of an image-text model, projected into the space that it shares with words."""

    def __init__(self, towers: nn.Module) -> None:
        super().__init__()
        self.towers = towers
        towers.text_model = nn.Identity()  # not needed for images

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) -> (n, dim)."""
        towers: Any = self.towers
        output: Tensor = towers.get_image_features(pixel_values=images).pooler_output
        return output


def _spatial_axes(features: Tensor) -> tuple[int, int]:
    """The height and width axes of a square image's feature map: two neighbours of equal length."""
    _, first, second, third = features.shape
    if second == third:
        return 2, 3
    if first == second:
        return 1, 2
    raise ValueError(f"features of shape {tuple(features.shape)} do not tell pixels from channels")


@torch.inference_mode()
def check_repeatable(model: nn.Module, image_size: int, what: str, channels: int = 3) -> None:
    """Raise UsageError unless each image gets one vector, equal in every call and at every place in the batch."""
    with torch.random.fork_rng(devices=[]):
        images = torch.rand(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
        once, again = model(images), model(images.flip(0))
    if len(once) != len(images):
        raise UsageError(f"{what}: gives {len(once)} vectors for {len(images)} images, expected one each")
    lowest = float(cosine_similarity(once.float(), again.flip(0).float()).min())
    if not lowest > _SAME:
        raise UsageError(
            f"{what}: gives the same image different vectors (cosine {lowest:.4f}); searches need equal ones"
        )
