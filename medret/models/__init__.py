"""Slices to vectors: which models there are, where their weights come from, and the encoder that runs them.

    registry    name -> ModelSpec (plain data)                open_names  the same for `timm:NAME` and `hf:NAME`
    weights     ModelSpec -> Weights, on driver and nodes     hub         where their files are fetched from
    checkpoint  files -> tensors, without running code        devices     device, precision, batch size
    encoder     ModelSpec + Weights -> torch module; uint8 slices -> float32 vectors

Importing this package does not import torch; using `Encoder`, `timm:` or `hf:` names does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medret.models.devices import default_batch_size, gc_paused, resolve_device, resolve_precision, tune_malloc
from medret.models.model_input import read_model_config, stated_by
from medret.models.registry import DEFAULT_MODEL, OPEN_PREFIXES, check_installed, model_names, model_spec
from medret.models.spec import ModelSpec, Stated
from medret.models.weights import Weights, read_contents, resolve_weights, stage_weights, staged_weights

if TYPE_CHECKING:
    from medret.models.encoder import Encoder


def __getattr__(name: str) -> Any:  # the encoder imports torch: load it on first use
    if name == "Encoder":
        from medret.errors import needs_extra

        with needs_extra(), gc_paused():
            from medret.models.encoder import Encoder
        return Encoder
    raise AttributeError(f"module 'medret.models' has no attribute '{name}'")
