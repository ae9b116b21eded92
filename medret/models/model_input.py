"""What a model is fed: as its image processor's file says, as a user states in a file, or as a store's recipe says.

medret's images are square, of the side that the model takes, and grey. For such images most steps of a processor change
nothing (resizing, cropping, padding to a square, converting to RGB, reversing channels); the others are followed, or
their key is refused. medret's own drawing stands in place of a processor's resizing: `resample` is not read.

A user states the rest in TOML (`--model-config`), each model in a section of its name:

    ["hf:owner/name"]
    image_size = 512                     # side in px
    mean = [0.5, 0.5, 0.5]               # per channel, in units of [0, 1]; of real values in their own unit
    std = [0.2, 0.2, 0.2]
    channels = 1                         # and the other fields of `medret.recipe.Contract`
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import msgspec

from medret.errors import UsageError, first_line
from medret.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Stated, Triple
from medret.recipe import USUAL, Contract, ModelRecipe
from medret.storage.objects import read_uri

_RENAMED = re.compile(r"FeatureExtractor$|ImageProcessor(Fast|Pil)$")
_DEFAULTS = ("do_normalize", "do_rescale", "rescale_factor", "image_mean", "image_std", "rescale_offset", "include_top")
_FOLLOWED = frozenset({*_DEFAULTS, "size", "crop_size", "do_center_crop"} - {"rescale_offset", "include_top"})
# Without effect on square grey images of the model's side.
_IDLE = frozenset(
    {
        "auto_map", "crop_pct", "data_format", "default_to_square", "device", "disable_grouping",
        "do_convert_rgb", "do_flip_channel_order", "do_grayscale", "do_pad", "do_reduce_labels",
        "do_resize", "ensure_multiple_of", "feature_extractor_type", "image_processor_type",
        "image_seq_length", "input_data_format", "keep_aspect_ratio", "model_input_names", "num_labels",
        "pad_size", "patch_size", "processor_class", "resample", "return_tensors", "size_divisor",
    }
)  # fmt: skip
_CURIA = "CuriaImageProcessor"  # of raidium/curia and curia-2: code of its own, whose steps are followed
_CURIA_KEYS = frozenset({"crop_size", "clip_below_air", "eps", "do_resize", "do_normalize"})


@dataclass(frozen=True)
class Fed:
    """What a model is fed: the side of its images in px, mean and std, and the contract."""

    image_size: int
    mean: Triple
    std: Triple
    contract: Contract = USUAL


def read_processor(content: Mapping[str, Any], image_size: Any, name: str) -> Fed:
    """Follow the configuration of an image processor. image_size: of the network, where the file does not state it.

    Raises UsageError for a key that would change what the model is fed and that medret does not follow, and where mean
    and std are missing.
    """
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type"))
    if kind == _CURIA:
        return _curia(content, name)
    content = {**_class_defaults(content, kind), **{key: value for key, value in content.items() if value is not None}}
    unknown = [key for key in content if key not in _FOLLOWED | _IDLE and not key.startswith("_") and content[key]]
    if unknown:
        raise UsageError(f"{name}: its preprocessor_config.json has {_listed(content, unknown)}, {_how_to_state(name)}")
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
                f"{custom_code if 'auto_map' in content else ''}. Take both from the model's page and state them as "
                f"mean and std in a file for --model-config"
            )
        mean = triple(content["image_mean"]) if normalises else (0.0, 0.0, 0.0)
        std = triple(content["image_std"]) if normalises else (1.0, 1.0, 1.0)
        # Mean and std apply after multiplication by this factor, whose result need not lie in [0, 1].
        span = 255 * float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 255.0
        if abs(span - 1) > 1e-3:
            mean = (mean[0] / span, mean[1] / span, mean[2] / span)
            std = (std[0] / span, std[1] / span, std[2] / span)
    return checked(Fed(side, mean, std), name)


def _curia(content: Mapping[str, Any], name: str) -> Fed:
    """Stored values resized with a bicubic filter; each image by its own mean and standard deviation.

    `clip_below_air` changes nothing: the processor turns 16-bit integers into shares of 32767 before it clips at -1000.
    """
    unknown = [key for key in content if key not in _CURIA_KEYS | _IDLE and not key.startswith("_")]
    if unknown or not content.get("do_normalize", True):
        key = unknown or ["do_normalize"]
        raise UsageError(f"{name}: its preprocessor_config.json has {_listed(content, key)}, {_how_to_state(name)}")
    side = _side(content.get("crop_size", 512)) or 512
    contract = Contract(channels=1, values="real", normalise="image", resample="bicubic")
    return checked(Fed(side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), contract), name)


def _class_defaults(content: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Values that the processor's class in transformers has where the file is silent."""
    if not content or "auto_map" in content:
        return {}
    import transformers

    known = getattr(transformers, _RENAMED.sub("ImageProcessor", kind), None)
    defaults = {key: getattr(known, key, None) for key in _DEFAULTS}
    return {key: value for key, value in defaults.items() if value is not None}


def stated(fed: Fed, by_user: Stated | None, name: str) -> Fed:
    """What the user states, and for the rest what the model's own files say."""
    if by_user is None:
        return fed
    try:
        contract = Contract(**{**vars(fed.contract), **by_user.contract})
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    image_size, mean, std = by_user.image_size, by_user.mean, by_user.std
    other_unit = (contract.values, contract.normalise) != (fed.contract.values, fed.contract.normalise)
    if other_unit and contract.normalise == "fixed" and (mean is None or std is None):
        raise UsageError(
            f"{name}: {contract.values} values need mean and std in their own unit, or normalise = 'image'"
        )
    return checked(Fed(image_size or fed.image_size, mean or fed.mean, std or fed.std, contract), name)


def is_stated(by_user: Stated | None) -> bool:
    """Whether the user states all that a processor's file would say."""
    if by_user is None or by_user.image_size is None:
        return False
    return by_user.contract.get("normalise") == "image" or (by_user.mean is not None and by_user.std is not None)


def checked(fed: Fed, name: str) -> Fed:
    """Raise UsageError unless a model can be fed so."""
    if not 8 <= fed.image_size <= 4096 or min(fed.std) <= 0:
        raise UsageError(f"{name}: input side {fed.image_size} px with std {fed.std} is not possible")
    return fed


def triple(values: Any) -> Triple:
    """One number, or one per channel."""
    if isinstance(values, int | float):
        values = [values]
    first, second, third = (list(values) * 3)[:3]
    return float(first), float(second), float(third)


def _listed(content: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} = {content[key]!r}" for key in keys[:4])


def _how_to_state(name: str) -> str:
    return (
        f"which medret does not follow: write what {name} is fed into a file for --model-config (docs/models.md says "
        "how), with image_size, mean and std"
    )


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    elif isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if isinstance(size, int) else None


_Range = tuple[float, float]
_Values = Annotated[list[float], msgspec.Meta(min_length=1, max_length=3)] | float
_MAX_BYTES = 1 << 20
CONTRACT_FIELDS = tuple(field.name for field in fields(Contract))


class _Section(msgspec.Struct, forbid_unknown_fields=True):
    """One model's section. The fields after std are those of `Contract`."""

    image_size: Annotated[int, msgspec.Meta(ge=8, le=4096)] | None = None
    mean: _Values | None = None
    std: _Values | None = None
    channels: Literal[1, 3] | None = None
    values: Literal["grey", "real"] | None = None
    windows_hu: Annotated[list[_Range], msgspec.Meta(min_length=1, max_length=3)] | None = None
    clip_hu: _Range | None = None
    normalise: Literal["fixed", "image"] | None = None
    orientation: Literal["radiological", "neurological"] | None = None
    resample: Literal["bilinear", "bicubic"] | None = None
    pooling: Literal["default", "cls", "mean", "pooler", "projection"] | None = None


def read_model_config(uri: str) -> dict[str, Stated]:
    """Model name -> what the file at a path or URI states about it. Raises UsageError."""
    try:
        data = read_uri(uri)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"--model-config {uri}: {len(data)} bytes is too large for a file of settings")
        content = tomllib.loads(data.decode())
    except FileNotFoundError as error:
        raise UsageError(f"--model-config {uri}: there is no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--model-config {uri} cannot be read as TOML: {error}") from error
    found = {}
    for name, section in content.items():
        try:
            parsed = msgspec.convert(section, _Section)
            contract = {
                field: tuple(value) if isinstance(value, list) else value
                for field in CONTRACT_FIELDS
                if (value := getattr(parsed, field)) is not None
            }
            found[name] = Stated(parsed.image_size, _triple(parsed.mean), _triple(parsed.std), contract)
        except msgspec.ValidationError as error:
            keys = ", ".join(_Section.__struct_fields__)
            raise UsageError(f'--model-config {uri}: ["{name}"]: {first_line(error)}; the keys are {keys}') from error
    return found


def _triple(values: list[float] | float | None) -> Triple | None:
    if values is None:
        return None
    listed = [values] if isinstance(values, float | int) else values
    if len(listed) not in (1, 3):
        raise msgspec.ValidationError(f"mean or std has {len(listed)} values, expected one, or one per channel")
    first, second, third = (listed * 3)[:3]
    return float(first), float(second), float(third)


def stated_by(recipe: ModelRecipe) -> Stated:
    """All that a recipe says about the input of its model."""
    return Stated(recipe.image_size, recipe.mean, recipe.std, vars(recipe.contract))


def check_as_stated(spec: ModelSpec, by_user: Stated | None) -> None:
    """Raise UsageError if something else is stated about a model whose input medret knows by its name."""
    if by_user is None:
        return
    known: Mapping[str, Any] = {**vars(spec.contract), **vars(spec)}
    asked: Mapping[str, Any] = {**vars(by_user), **by_user.contract}
    wrong = [
        f"{key} {asked[key]} instead of {known[key]}"
        for key in ("image_size", "mean", "std", *CONTRACT_FIELDS)
        if asked.get(key) is not None and asked[key] != known[key]
    ]
    if wrong:
        raise UsageError(
            f"{spec.name} is fed as its publisher says, not with {', '.join(wrong)}: use another model, or these "
            "weights under the name timm:NAME or hf:NAME, whose input can be stated"
        )
