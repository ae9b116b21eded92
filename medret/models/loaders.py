"""Load a torch module from a spec and its weights, for all families of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from medret.errors import WeightsError
from medret.extras import needs_extra, require
from medret.models.spec import Family, ModelSpec
from medret.models.weights import Weights, check_weights

if TYPE_CHECKING:
    from torch import nn

_PACKAGES: dict[Family, tuple[str, ...]] = {"timm": ("timm",), "dreamsim": ("dreamsim",), "hf": ("transformers",)}


def load_model(spec: ModelSpec, weights: Weights) -> nn.Module:
    """Load the model in float32 on the CPU, ready for inference.

    It maps (n, 3, side, side) float32, normalised by the spec's mean and std, to (n, dim). Raises WeightsError when
    the files have changed since they were resolved, are damaged, or hold another model.
    """
    if weights.model != spec.name:
        raise WeightsError(f"these are weights of {weights.model}, not of {spec.name}")
    check_weights(weights)
    with needs_extra():
        model = _loader(spec.family)(spec, weights)
    return model.eval().requires_grad_(False)


def check_installed(spec: ModelSpec) -> None:
    """Raise MissingPackageError unless the packages that build the model are installed; imports nothing."""
    require("torch", "torchvision", "safetensors", *_PACKAGES[spec.family])


def _loader(family: Family) -> Callable[[ModelSpec, Weights], nn.Module]:
    if family == "timm":
        from medret.models.timm_models import load_timm

        return load_timm
    if family == "dreamsim":
        from medret.models.dreamsim import load_dreamsim

        return load_dreamsim
    from medret.models.hf_models import load_hf

    return load_hf
