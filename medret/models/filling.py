"""Making a module with the weights that are wanted in it: read from a file, strictly, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from medret.errors import WeightsError
from medret.models.staging import Weights

Module = TypeVar("Module", bound=nn.Module)

_SHOWN = 4
# Of training steps in batch norms: absent from older files, and without effect on what a model gives.
_COUNTER = "num_batches_tracked"


def build(weights: Weights, make: Callable[[], Module]) -> Module:
    """Make a module: with all values drawn from the seed of random weights, or allocated only, to be filled.

    Random values follow from the weights' sha256 alone, in every process; torch's own generator is left as it was.
    """
    if not weights.random:
        return _allocated(make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(weights.sha256[:15], 16))
        return make()


def _allocated(make: Callable[[], Module]) -> Module:
    """The module without drawing values that a file replaces, which takes longer than reading the file.

    Only where every tensor comes from the file: one that the module computes for itself has to be computed.
    """
    try:
        with torch.device("meta"):
            module = make()
    except (RuntimeError, NotImplementedError):  # it looks at values while it is made
        return make()
    from_file = module.state_dict().keys()
    if any(name not in from_file for name, _ in module.named_buffers()) or any(map(_holds_tensor, module.modules())):
        return make()
    return module.to_empty(device="cpu")


def _holds_tensor(module: nn.Module) -> bool:
    """Whether a tensor is kept as a plain attribute, where `to_empty` does not see it."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(item, Tensor) for item in inner):
            return True
    return False


def mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """What keeps `state` from filling every tensor of `module` and nothing else, in words; None when it fits."""
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in wanted]
    shaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    found = [
        f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
        if keys
    ]
    return f"of {len(wanted)} expected tensors {'; '.join(found)}" if found else None


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load `state` into `module`, all of it. path, what: file and model, for the message of the WeightsError."""
    problem = mismatch(module, state)
    if problem:
        raise WeightsError(f"weights {path}: not a checkpoint of {what}: {problem}")
    wanted = module.state_dict()
    counters = {key: torch.zeros_like(value) for key, value in wanted.items() if key.endswith(_COUNTER)}
    module.load_state_dict({**counters, **state})
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            raise WeightsError(f"weights {path}: {name} holds values that are not finite")
