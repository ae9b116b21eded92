"""Checkpoints: read without running code that came with them, and loaded strictly into a module."""

from __future__ import annotations

import importlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medret.errors import UsageError, WeightsError, first_line
from medret.models.hub import Entry
from medret.models.spec import ModelSpec
from medret.models.weights import Weights

State = dict[str, Tensor]

# A published file is often a dictionary around the tensors.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher")
_ZIP_START = b"PK\x03\x04"
_SHOWN = 4
_MAX_JSON_BYTES = 1 << 20


def read_state(path: Path) -> State:
    """Read the tensors of a checkpoint file, by name. The first bytes tell .safetensors from torch.save's format.

    Raises WeightsError when the file has neither format, is cut short, or needs code to run to be read.
    """
    content = _read_any(path)
    for _ in range(len(_WRAPPERS)):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {str(key): value for key, value in content.items() if hasattr(value, "shape") and hasattr(value, "dtype")}
    if not state:
        keys = ", ".join(map(str, list(content)[:_SHOWN]))
        raise WeightsError(f"weights {path}: holds no tensors by name (its keys: {keys or 'none'})")
    return state


def _read_any(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            start = file.read(9)
        if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
            return load_file(path)
        mapped = start.startswith(_ZIP_START)  # older files cannot be mapped
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights {path}: is not a checkpoint, or reading it would run code; medret reads tensors only "
            f"(.safetensors, or a state_dict saved by torch.save): {first_line(error)}"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"weights {path}: damaged, cut short or not a checkpoint: {first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {path}: holds a {type(content).__name__}, expected tensors by name (a state_dict)")
    return content


def read_json(entry: Entry, name: str) -> dict[str, Any]:
    """Read a small JSON object that came with weights. name: of the file, for the message of the WeightsError."""
    try:
        if isinstance(entry, Path) and entry.stat().st_size > _MAX_JSON_BYTES:
            raise WeightsError(f"{name}: {entry.stat().st_size} bytes is too large for a configuration")
        content = json.loads(entry.read_bytes() if isinstance(entry, Path) else entry())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{name} holds a JSON {type(content).__name__}, expected an object")
    return content


Module = TypeVar("Module", bound=nn.Module)

# Counts training steps in batch norms: absent from older files, and without effect on a model's output.
_COUNTER = "num_batches_tracked"


def build(weights: Weights, make: Callable[[], Module]) -> Module:
    """Make a module, its values drawn from the seed of random weights or else left to be filled from a file.

    Random values depend on the weights' sha256 alone, in every process. torch's global generator is not changed.
    """
    if not weights.random:
        return _allocated(make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(weights.sha256[:15], 16))
        return make()


def _allocated(make: Callable[[], Module]) -> Module:
    """Make the module without drawing values that a file replaces, which would take longer than reading the file.

    Falls back to drawing them where the module computes a tensor itself, which the file then lacks.
    """
    try:
        with torch.device("meta"):
            module = make()
    except (RuntimeError, NotImplementedError):  # its constructor reads values
        return make()
    from_file = module.state_dict().keys()
    if any(name not in from_file for name, _ in module.named_buffers()) or any(map(_holds_tensor, module.modules())):
        return make()
    return module.to_empty(device="cpu")


def _holds_tensor(module: nn.Module) -> bool:
    """Whether a plain attribute holds a tensor, which `to_empty` does not see."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(item, Tensor) for item in inner):
            return True
    return False


def mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Why `state` does not fit the tensors of `module` one to one, in words; None if it fits."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in expected]
    shaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
        if keys
    ]
    return f"of {len(expected)} expected tensors {'; '.join(problems)}" if problems else None


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load all of `state` into `module`. path, what: file and model, for the message of the WeightsError."""
    problem = mismatch(module, state)
    if problem:
        raise WeightsError(f"weights {path}: not a checkpoint of {what}: {problem}")
    expected = module.state_dict()
    counters = {key: torch.zeros_like(value) for key, value in expected.items() if key.endswith(_COUNTER)}
    module.load_state_dict({**counters, **state})
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            raise WeightsError(f"weights {path}: {name} holds values that are not finite")


def load_packaged(spec: ModelSpec, weights: Weights) -> nn.Module:
    """The network of a model that another package brings: built by its function, filled from a file.

    Raises UsageError if there is no such function, WeightsError.
    """
    module, _, function = spec.architecture.partition(":")
    try:
        make: Callable[[ModelSpec], nn.Module] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{spec.name}: '{spec.architecture}' is no module:function: {first_line(error)}") from error
    model = build(weights, lambda: make(spec))
    if not weights.random:
        path = weights.files["weights"]
        fill(model, read_state(path), path, spec.name)
    return model
