"""`timm:NAME` and `hf:NAME`: the spec of any vision model of the two libraries, read from their own records.

Widths and costs are measured by running the architecture on torch's meta device, which computes shapes but no values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medret.errors import NotFoundError, UsageError, WeightsError, first_line
from medret.models.checkpoint import read_json
from medret.models.hub import FileSet, fetch, open_files
from medret.models.spec import IMAGENET_MEAN, IMAGENET_STD, Folder, HubFile, ModelSpec, Origin, Triple, WeightPart

# transformers writes it alone or, from version 5 on, in one file with a tokenizer's.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_RENAMED = re.compile(r"FeatureExtractor$|ImageProcessorFast$")
_NORMALISING = ("do_normalize", "do_rescale", "rescale_factor", "image_mean", "image_std")
_UNKNOWN = "unknown: see the model's page"
_HF_PARTS = (
    WeightPart("config", ("config.json",)),
    WeightPart("weights", ("model.safetensors", "pytorch_model.bin")),
)


def open_spec(name: str, weights_uri: str | None = None) -> ModelSpec:
    """The spec of `timm:NAME` or `hf:NAME`. weights_uri: for `hf:`, a folder with config.json. See `model_spec`."""
    library, _, model = name.partition(":")
    if not model:
        raise UsageError(f"model '{name}' has no name after the colon")
    return _timm_spec(name, model) if library == "timm" else _hf_spec(name, model, weights_uri)


def measure(make: Callable[[], nn.Module], image_size: int, what: str) -> tuple[int, float]:
    """The width of one image's vector, and its cost in 10^9 multiply-adds.

    Raises UsageError unless the model gives one vector per image.
    """
    shape, flop, problem = _one_image(make, image_size, "meta")
    if problem:  # some architectures read values while they are built or run
        with torch.random.fork_rng(devices=[]):
            shape, flop, problem = _one_image(make, image_size, "cpu")
    if problem:
        raise UsageError(f"{what}: does not turn an image of {image_size} px into a vector: {problem}")
    if len(shape) != 2:
        raise UsageError(f"{what}: gives an array of shape {shape} for one image, expected one vector")
    return int(shape[1]), flop / 2e9


def _one_image(make: Callable[[], nn.Module], image_size: int, device: str) -> tuple[tuple[int, ...], int, str]:
    """The output's shape and the FLOP for one image, or the problem."""
    try:
        with torch.device(device), torch.inference_mode(), FlopCounterMode(display=False) as counter:
            shape = tuple(make().eval()(torch.empty(1, 3, image_size, image_size)).shape)
        return shape, counter.get_total_flops(), ""
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001  architectures fail in any way on an image they do not fit
        return (), 0, first_line(error)


def _timm_spec(name: str, model: str) -> ModelSpec:
    import timm
    from timm.models import get_pretrained_cfg

    from medret.models.timm_models import build_timm

    if ":" in model or "/" in model or not timm.is_model(model):
        close = timm.list_models(f"*{model.partition('.')[0]}*")[:5]
        hint = f"; close ones: {', '.join(close)}" if close else ""
        raise UsageError(f"{name}: timm {timm.__version__} has no such model{hint}")
    try:
        record = get_pretrained_cfg(model)
    except RuntimeError as error:
        raise UsageError(f"{name}: {first_line(error)}") from error
    if record is None:
        raise UsageError(f"{name}: timm records no input size, mean and std for it")
    _, height, width = record.input_size
    if height != width:
        raise UsageError(f"{name}: its input is {height} x {width} px; medret makes square slices")
    hub = record.hf_hub_id
    spec = ModelSpec(
        name, "timm", model, 0, width, _triple(record.mean), _triple(record.std), record.license or _UNKNOWN,
        f"timm checkpoint {record.tag or 'default'}",
        f"model.safetensors of {hub} (Hugging Face hub)" if hub else f"a checkpoint of timm's {model}",
        origins=(HubFile(hub, (record.hf_hub_filename or "model.safetensors", "pytorch_model.bin")),) if hub else (),
        interpolation=record.interpolation,
    )  # fmt: skip
    dim, gmacs = measure(lambda: build_timm(spec), width, name)
    return replace(spec, dim=dim, gmacs=gmacs)


def _hf_spec(name: str, model: str, weights_uri: str | None) -> ModelSpec:
    from medret.models.hf_models import build_pooled, vision_config

    files, source = _hf_files(name, model, weights_uri)
    content = _json(files, "config.json", name)
    if content is None:
        raise WeightsError(f"{name}: {files.label} holds no config.json")
    config = vision_config(content, name)
    shown = _processor(files, name)
    image_size, mean, std = _preprocessing(shown or {}, getattr(config, "image_size", None), name)
    folder = Path(model).expanduser()
    origins: tuple[Origin, ...] = tuple(HubFile(model, part.names) for part in _HF_PARTS)
    spec = ModelSpec(
        name, "hf", str(content.get("model_type")), 0, image_size, mean, std, _UNKNOWN, "see the model's page",
        source + ("" if shown else " (without preprocessor_config.json: ImageNet's mean and std are assumed)"),
        origins=(Folder(str(folder.absolute())),) if folder.is_dir() else origins,
        parts=_HF_PARTS, config_json=json.dumps(content, sort_keys=True),
    )  # fmt: skip
    dim, gmacs = measure(lambda: build_pooled(config, name), image_size, name)
    return replace(spec, dim=dim, gmacs=gmacs)


def _hf_files(name: str, model: str, weights_uri: str | None) -> tuple[FileSet, str]:
    """Fetch config.json and, if there is one, the configuration of the image processor."""
    if weights_uri is not None and not weights_uri.startswith("random"):
        return open_files(weights_uri), weights_uri
    if Path(model).expanduser().is_dir():
        return open_files(model), model
    files = FileSet(model)
    for file_names in (("config.json",), _PROCESSOR_FILES):
        try:
            files |= fetch(HubFile(model, file_names))[0]
        except (WeightsError, NotFoundError) as error:
            if file_names == _PROCESSOR_FILES and isinstance(error, NotFoundError):
                continue
            raise WeightsError(
                f"{name}: no configuration found: {error}. Download config.json, preprocessor_config.json and "
                f"model.safetensors of {model} on a machine with a network and pass --weights {name}=FOLDER"
            ) from error
    return files, f"{model} (Hugging Face hub)"


def _json(files: FileSet, file_name: str, name: str) -> dict[str, Any] | None:
    entry = files.entries.get(file_name)
    return None if entry is None else read_json(entry, f"{name}: {file_name} in {files.label}")


def _processor(files: FileSet, name: str) -> dict[str, Any] | None:
    """The image processor's configuration over its class's defaults in transformers; None without a configuration."""
    content = next((parsed for file in _PROCESSOR_FILES if (parsed := _json(files, file, name)) is not None), None)
    if content is None:
        return None
    content = content.get("image_processor", content)
    if not isinstance(content, dict):
        raise WeightsError(f"{name}: image_processor in {files.label} is not a JSON object")
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type"))
    import transformers

    known = None if "auto_map" in content else getattr(transformers, _RENAMED.sub("ImageProcessor", kind), None)
    defaults = {key: getattr(known, key, None) for key in _NORMALISING}
    return {key: value for values in (defaults, content) for key, value in values.items() if value is not None}


def _preprocessing(content: dict[str, Any], image_size: Any, name: str) -> tuple[int, Triple, Triple]:
    """Image size in px, mean and std of the model's image processor, for intensities in [0, 1].

    Raises UsageError when it normalises but does not state mean and std.
    """
    side = _side(content.get("crop_size")) if content.get("do_center_crop", True) else None
    side = side or _side(content.get("size")) or _side(image_size) or 224
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if content:
        normalises = content.get("do_normalize", True)
        missing = [key for key in ("image_mean", "image_std") if not content.get(key)]
        if normalises and missing:
            custom_code = " (it names custom code, and medret does not run code that comes with weights)"
            raise UsageError(
                f"{name}: its preprocessor_config.json has no {' and no '.join(missing)}"
                f"{custom_code if 'auto_map' in content else ''}. Take both from the model's page, write them into "
                f"that file in a folder with config.json and the weights, and pass --weights {name}=FOLDER"
            )
        mean = _triple(content["image_mean"]) if normalises else (0.0, 0.0, 0.0)
        std = _triple(content["image_std"]) if normalises else (1.0, 1.0, 1.0)
        # Mean and std apply after multiplication by this factor, whose result need not lie in [0, 1].
        span = 255 * float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 255.0
        if abs(span - 1) > 1e-3:
            mean = (mean[0] / span, mean[1] / span, mean[2] / span)
            std = (std[0] / span, std[1] / span, std[2] / span)
    if not 8 <= side <= 4096 or min(std) <= 0:
        raise UsageError(f"{name}: input side {side} px with std {std} is not possible")
    return side, mean, std


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    elif isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) else None


def _triple(values: Any) -> Triple:
    if isinstance(values, int | float):
        values = [values]
    first, second, third = (list(values) * 3)[:3]
    return float(first), float(second), float(third)
