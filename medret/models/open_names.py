"""`timm:NAME` and `hf:NAME`: the spec of any vision model of the two libraries, read from their own records.

`timm:hf_hub:OWNER/NAME` is a model in timm's layout on the Hugging Face hub; `@REVISION` names a version of a
repository.

Widths and costs are measured by running the architecture on torch's meta device, which computes shapes but no values.
"""

from __future__ import annotations

import json
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
from medret.models.model_input import Fed, is_stated, read_processor, stated, triple
from medret.models.spec import Folder, HubFile, ModelSpec, Origin, Stated, WeightPart, words_of
from medret.models.timm_models import TIMM_POOLING, build_timm
from medret.models.weights import is_random
from medret.recipe import USUAL, Contract

# transformers writes it alone or, from version 5 on, in one file with a tokenizer's.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_HUB_PREFIXES = ("hf_hub:", "hf-hub:")  # as timm writes them
_UNKNOWN = "unknown: see the model's page"
_HF_PARTS = (
    WeightPart("config", ("config.json",)),
    WeightPart("weights", ("model.safetensors", "pytorch_model.bin")),
)


def open_spec(name: str, weights_uri: str | None = None, by_user: Stated | None = None) -> ModelSpec:
    """The spec of `timm:NAME` or `hf:NAME`. weights_uri: for models of the hub, a folder with their config.json."""
    library, _, model = name.partition(":")
    if not model:
        raise UsageError(f"model '{name}' has no name after the colon")
    return (_timm_spec if library == "timm" else _hf_spec)(name, model, weights_uri, by_user)


def measure(make: Callable[[], nn.Module], image_size: int, what: str, channels: int = 3) -> tuple[int, float]:
    """The width of one image's vector, and its cost in 10^9 multiply-adds.

    Raises UsageError unless the model gives one vector per image.
    """
    shape, flop, problem = _one_image(make, (channels, image_size, image_size), "meta")
    if problem:  # some architectures read values while they are built or run
        with torch.random.fork_rng(devices=[]):
            shape, flop, problem = _one_image(make, (channels, image_size, image_size), "cpu")
    if problem:
        raise UsageError(f"{what}: does not turn an image of {image_size} px into a vector: {problem}")
    if len(shape) != 2:
        raise UsageError(f"{what}: gives an array of shape {shape} for one image, expected one vector")
    return int(shape[1]), flop / 2e9


def _one_image(
    make: Callable[[], nn.Module], image: tuple[int, int, int], device: str
) -> tuple[tuple[int, ...], int, str]:
    """The output's shape and the FLOP for one image, or the problem."""
    try:
        with torch.device(device), torch.inference_mode(), FlopCounterMode(display=False) as counter:
            shape = tuple(make().eval()(torch.empty(1, *image)).shape)
        return shape, counter.get_total_flops(), ""
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001  architectures fail in any way on an image they do not fit
        return (), 0, first_line(error)


def _revised(model: str) -> tuple[str, str | None]:
    """`OWNER/NAME@REVISION` -> the repository and the revision."""
    repo, at, revision = model.partition("@")
    return repo, revision if at else None


def _timm_spec(name: str, model: str, weights_uri: str | None, by_user: Stated | None) -> ModelSpec:
    hub = model.partition(":")[2] if model.startswith(_HUB_PREFIXES) else None
    spec = _timm_hub_spec(name, hub, weights_uri) if hub else _timm_own_spec(name, model)
    fed = stated(Fed(spec.image_size, spec.mean, spec.std, spec.contract), by_user, name)
    options = dict(spec.options)
    if (hub or fed.image_size != spec.image_size) and _is_built_for_a_size(spec.architecture):
        options["img_size"] = fed.image_size
    if fed.contract.channels != 3:
        options["in_chans"] = fed.contract.channels
    if fed.contract.pooling not in TIMM_POOLING:
        raise UsageError(f"{name}: pooling '{fed.contract.pooling}' is not timm's; expected {', '.join(TIMM_POOLING)}")
    spec = replace(
        spec, image_size=fed.image_size, mean=fed.mean, std=fed.std, contract=fed.contract,
        options=tuple(options.items()),
    )  # fmt: skip
    dim, gmacs = measure(lambda: build_timm(spec), fed.image_size, name, fed.contract.channels)
    return replace(spec, dim=dim, gmacs=gmacs)


def _is_built_for_a_size(architecture: str) -> bool:
    """Whether the size of images is an option of a timm architecture; others take any size, and no such option."""
    from timm.models import get_pretrained_cfg

    record = get_pretrained_cfg(architecture.partition(".")[0])  # whatever the weights are called
    return record is None or bool(record.fixed_input_size)


def _timm_own_spec(name: str, model: str) -> ModelSpec:
    """A model that timm knows by name."""
    import timm
    from timm.models import get_pretrained_cfg

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
    hub = record.hf_hub_id
    return ModelSpec(
        name, "timm", model, 0, _square(record.input_size, name), triple(record.mean), triple(record.std),
        record.license or _UNKNOWN, f"timm checkpoint {record.tag or 'default'}",
        f"model.safetensors of {hub} (Hugging Face hub)" if hub else f"a checkpoint of timm's {model}",
        origins=(HubFile(hub, (record.hf_hub_filename or "model.safetensors", "pytorch_model.bin")),) if hub else (),
        interpolation=record.interpolation,
    )  # fmt: skip


def _timm_hub_spec(name: str, hub: str, weights_uri: str | None) -> ModelSpec:
    """A model in timm's layout in a repository of the hub: its config.json says what timm's own records say."""
    import timm

    repo, revision = _revised(hub)
    files, _ = _files(name, hub, weights_uri, ("config.json",))
    folder = Path(hub).expanduser()
    origin: Origin = HubFile(repo, ("model.safetensors", "pytorch_model.bin"), revision)
    content = _json(files, "config.json", name)
    record = content.get("pretrained_cfg", content) if content else None
    architecture = content.get("architecture") if content else None
    if not isinstance(record, dict) or not isinstance(architecture, str) or "input_size" not in record:
        raise WeightsError(
            f"{name}: config.json in {files.label} has no architecture and pretrained_cfg, as timm's has"
        )
    if not timm.is_model(architecture):
        raise UsageError(f"{name}: timm {timm.__version__} has no architecture '{architecture}'")
    mean, std = record.get("mean"), record.get("std")
    if not mean or not std:
        raise UsageError(f"{name}: config.json in {files.label} has no mean and std in pretrained_cfg")
    options = dict(content.get("model_args") or {}) if content else {}
    if any(not isinstance(value, str | int | float) for value in options.values()):
        raise UsageError(f"{name}: model_args in config.json are {options}, expected plain values")
    if content and content.get("global_pool") is not None:
        options["global_pool"] = content["global_pool"]
    channels = record["input_size"][0]
    contract = Contract(channels=1) if channels == 1 else USUAL
    return ModelSpec(
        name, "timm", architecture, 0, _square(record["input_size"], name), triple(mean), triple(std),
        str(record.get("license") or _UNKNOWN), "see the model's page",
        f"model.safetensors of {folder if folder.is_dir() else f'{hub} (Hugging Face hub)'}",
        origins=(Folder(str(folder.absolute())) if folder.is_dir() else origin,),
        options=tuple(options.items()), interpolation=str(record.get("interpolation", "bicubic")), contract=contract,
    )  # fmt: skip


def _square(input_size: Any, name: str) -> int:
    _, height, width = input_size
    if height != width:
        raise UsageError(f"{name}: its input is {height} x {width} px; medret makes square slices")
    return int(width)


def _hf_spec(name: str, model: str, weights_uri: str | None, by_user: Stated | None) -> ModelSpec:
    from medret.models.hf_models import build_pooled

    wanted = () if is_stated(by_user) else (_PROCESSOR_FILES,)
    files, source = _files(name, model, weights_uri, ("config.json",), *wanted)
    content = _json(files, "config.json", name)
    if content is None:
        raise WeightsError(f"{name}: {files.label} holds no config.json")
    tower = vision_part(content)
    own_size, channels = tower.get("image_size"), tower.get("num_channels", 3)
    shown = None if is_stated(by_user) else _processor(files, name)
    fed = read_processor({} if shown is None else shown, own_size, name)
    if channels == 1 and fed.contract.channels != 1:
        fed = replace(fed, contract=replace(fed.contract, channels=1))
    fed = stated(fed, by_user, name)
    repo, revision = _revised(model)
    folder = Path(model).expanduser()
    origins: tuple[Origin, ...] = tuple(HubFile(repo, part.names, revision) for part in _HF_PARTS)
    assumed = " (without preprocessor_config.json: ImageNet's mean and std are assumed)"
    spec = ModelSpec(
        name, "hf", str(content.get("model_type")), 0, fed.image_size, fed.mean, fed.std, _UNKNOWN,
        "see the model's page", source + (assumed if shown is None and by_user is None else ""),
        origins=(Folder(str(folder.absolute())),) if folder.is_dir() else origins,
        parts=_HF_PARTS, config_json=json.dumps(content, sort_keys=True), contract=fed.contract,
        words=words_of(content, fed.contract.pooling),
    )  # fmt: skip
    pooling = fed.contract.pooling
    dim, gmacs = measure(lambda: build_pooled(content, name, pooling), fed.image_size, name, fed.contract.channels)
    return replace(spec, dim=dim, gmacs=gmacs)


def vision_part(content: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the image tower: all of it, for a model without others."""
    inner = content.get("vision_config")
    return inner if isinstance(inner, dict) else content


def _files(name: str, model: str, weights_uri: str | None, *wanted: tuple[str, ...]) -> tuple[FileSet, str]:
    """Fetch small files of a model, the first of which it must have. wanted: names of each, tried in this order."""
    if weights_uri is not None and not is_random(weights_uri):
        return open_files(weights_uri), weights_uri
    if Path(model).expanduser().is_dir():
        return open_files(model), model
    files = FileSet(model)
    repo, revision = _revised(model)
    for file_names in wanted:
        try:
            files |= fetch(HubFile(repo, file_names, revision))[0]
        except (WeightsError, NotFoundError) as error:
            if file_names != wanted[0] and isinstance(error, NotFoundError):
                continue
            needed = ", ".join(names[0] for names in wanted)
            raise WeightsError(
                f"{name}: no configuration found: {error}. Download {needed} and model.safetensors of {model} on a "
                f"machine with a network and pass --weights {name}=FOLDER"
            ) from error
    return files, f"{model} (Hugging Face hub)"


def _json(files: FileSet, file_name: str, name: str) -> dict[str, Any] | None:
    entry = files.entries.get(file_name)
    return None if entry is None else read_json(entry, f"{name}: {file_name} in {files.label}")


def _processor(files: FileSet, name: str) -> dict[str, Any] | None:
    """The configuration of the image processor; None without a file."""
    content = next((parsed for file in _PROCESSOR_FILES if (parsed := _json(files, file, name)) is not None), None)
    return None if content is None else inner_processor(content, f"{name}: image_processor in {files.label}")


def inner_processor(content: dict[str, Any], what: str) -> dict[str, Any]:
    """The image processor's part of a file that may hold a tokenizer's too. what: it is, for the WeightsError."""
    inner = content.get("image_processor", content)
    if not isinstance(inner, dict):
        raise WeightsError(f"{what} is not a JSON object")
    return inner
