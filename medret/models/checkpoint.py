"""Reading checkpoint files without running code that came with them."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]

# A published file is often a dictionary around the tensors.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher")
_ZIP_START = b"PK\x03\x04"
_SHOWN = 4
_MAX_JSON_BYTES = 1 << 20


def read_state(path: Path) -> State:
    """The tensors of a checkpoint file, by name; .safetensors or what torch.save writes, told by the first bytes.

    Raises WeightsError when the file is neither, is cut short, or would have to run code to be read.
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
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            start = file.read(9)
        if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size:
            return load_file(path)
        mapped = start.startswith(_ZIP_START)  # of older files all is copied to memory
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights {path}: needs code to be read, or is not a checkpoint; medret reads tensors only (.safetensors, "
            f"or a state_dict saved by torch.save): {str(error).splitlines()[0]}"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"weights {path}: damaged, cut short or not a checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {path}: holds a {type(content).__name__}, expected tensors by name (a state_dict)")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object that came with weights. Raises WeightsError."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise WeightsError(f"weights {path}: {path.stat().st_size} bytes are too many for a configuration")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights {path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"weights {path}: holds a JSON {type(content).__name__}, expected an object")
    return content
