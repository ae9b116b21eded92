"""`hf:` models: transformers' own class for a configuration, filled from a file, never running code from the hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn

from medret.errors import UsageError, WeightsError
from medret.models.checkpoint import build, read_json, read_state
from medret.models.outputs import Pooled, check_repeatable, refuse_queries
from medret.models.spec import ModelSpec
from medret.models.weights import Weights

_SHOWN = 4
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
    """Build the module for a configuration, randomly initialised. Raises UsageError if it is not an image model."""
    try:
        auto: Any = transformers.AutoModel
        model: nn.Module = auto.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError) as error:
        raise UsageError(f"{where}: transformers cannot build it: {str(error).splitlines()[0]}") from error
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise UsageError(f"{where}: {type(model).__name__} takes {getattr(model, 'main_input_name', '?')}, not images")
    refuse_queries(model, where)
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
    config = vision_config(read_json(weights.files["config"]), spec.name)
    with torch.device("meta"):
        model_class: Any = type(build_hf(config, spec.name))
    state = {key: value.float() if value.is_floating_point() else value for key, value in read_state(path).items()}
    try:
        with _quiet():
            model, found = model_class.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise WeightsError(f"weights {path}: not a checkpoint of {spec.name}: {str(error).splitlines()[0]}") from error
    missing = sorted(found["missing_keys"])
    untrained = [key for key in missing if not key.startswith("pooler.") and not key.endswith("num_batches_tracked")]
    shaped = [str(key[0]) if isinstance(key, tuple) else str(key) for key in found["mismatched_keys"]]
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
