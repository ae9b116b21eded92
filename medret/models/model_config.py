"""What models are fed, stated by a user in a small TOML file (`--model-config`), or by the recipe of a store.

    ["hf:owner/name"]                    # as --model names it
    image_size = 512                     # side in px
    mean = [0.5, 0.5, 0.5]               # per channel, in units of [0, 1]; of real values in their own unit
    std = [0.2, 0.2, 0.2]
    channels = 1                         # and the other fields of a contract: values, windows_hu, clip_hu, normalise,
                                         # orientation, resample, pooling (medret.recipe.Contract)

What the file does not state is read from the model's own files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

import msgspec

from medret.errors import UsageError, first_line
from medret.models.spec import ModelSpec, Stated, Triple
from medret.recipe import Contract, ModelRecipe
from medret.storage.objects import read_uri

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
    first, second, third = (listed * 3)[:3] if len(listed) != 2 else (*listed, listed[1])
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
