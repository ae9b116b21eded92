"""The recipe: everything that decides the value of a vector. Every file made with it records its digest.

`SliceRecipe` says how bytes become uint8 slices; all models of a run share it, so each volume is decoded once.
`ModelRecipe` says how slices become vectors. Compare two vectors only if their recipe digests are equal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError

Plane = Literal["axial", "coronal", "sagittal"]
Precision = Literal["fp32", "bf16"]
PLANES: tuple[Plane, ...] = get_args(Plane)

# Fields whose name on disk and in digests differs from the name in code; and the reverse.
_ON_DISK = {"image_size": "side_px"}
_IN_CODE = {on_disk: name for name, on_disk in _ON_DISK.items()}

# Increase when the same input would give different pixels (decoding, orientation, windowing, resizing).
PIXELS_VERSION = 2
# Increase when the same pixels and weights would give different vectors.
VECTORS_VERSION = 3


@dataclass(frozen=True)
class SliceRecipe:
    """How the bytes of a volume become square uint8 slices.

    planes: anatomical planes; the slice plan applies to each.
    slices: slice plan, `all`, `every:N`, `uniform:N` or `random:N`.
    seed: seed of `random:N`, combined with the volume's id.
    ct_window: name of a HU window preset (medret.volume.intensity.CT_WINDOWS), used for CT.
    percentiles: foreground intensities at these percentiles become 0 and 255; used for all other modalities.
    crop: `foreground` crops each volume to the bounding box of its foreground, `none` keeps the field of view.
    """

    planes: tuple[Plane, ...] = ("axial",)
    slices: str = "uniform:16"
    seed: int = 0
    ct_window: str = "soft_tissue"
    percentiles: tuple[float, float] = (0.5, 99.5)
    crop: Literal["foreground", "none"] = "foreground"
    pixels_version: int = PIXELS_VERSION

    def __post_init__(self) -> None:
        wrong = [plane for plane in self.planes if plane not in PLANES]
        if wrong or not self.planes or len(set(self.planes)) != len(self.planes):
            raise UsageError(f"planes {list(self.planes)} are not distinct names from {', '.join(PLANES)}")


@dataclass(frozen=True)
class ModelRecipe:
    """How square uint8 slices become vectors.

    name: value of `--model`. weights_sha256: of the weight file or files. image_size: input side in pixels.
    mean, std: per channel, for intensities in [0, 1]. dim: width of a vector. layers: inner layers whose pooled
    features are appended to the model's output.
    """

    name: str
    weights_sha256: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dim: int
    precision: Precision
    layers: tuple[str, ...] = ()
    vectors_version: int = VECTORS_VERSION


@dataclass(frozen=True)
class Recipe:
    """Bytes to vectors: one slice recipe and one model recipe."""

    slices: SliceRecipe
    model: ModelRecipe
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_of(self._content()))

    def _content(self) -> dict[str, Any]:
        model = {_ON_DISK.get(name, name): value for name, value in asdict(self.model).items()}
        return {"slices": asdict(self.slices), "model": model}

    def to_json(self) -> dict[str, Any]:
        """The recipe as a JSON object; `from_json` is its inverse."""
        return {**self._content(), "digest": self.digest}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from `to_json`; raise UsageError if its digest differs from the recorded one."""
        slices, model = dict(content["slices"]), dict(content["model"])
        for part, keys in ((slices, ("planes", "percentiles")), (model, ("mean", "std", "layers"))):
            part.update({key: tuple(part[key]) for key in keys})
        model = {_IN_CODE.get(name, name): value for name, value in model.items()}
        recipe = cls(SliceRecipe(**slices), ModelRecipe(**model))
        if recipe.digest != content["digest"]:
            raise UsageError(f"the recipe's digest is {recipe.digest}, but the record says {content['digest']}")
        return recipe


def middles(count: int, parts: int) -> NDArray[np.int64]:
    """Return the numbers in range(count) nearest to the middles of `parts` equal parts: the rule of `uniform:N`.

    parts <= count. Part i has its middle at (2i + 1) count / (2 parts). Between two numbers, the lower half of the
    parts rounds up and the upper half rounds down, so that the choice is its own mirror image.
    """
    part = np.arange(parts, dtype=np.int64)
    doubled = (2 * part + 1) * count  # the middle, in units of 1 / (2 parts)
    below = doubled // (2 * parts)
    on_edge = (doubled % (2 * parts) == 0) & (part >= parts // 2)
    result: NDArray[np.int64] = below - on_edge
    return result


def digest_of(content: Any) -> str:
    """Return the first 16 hex digits of the sha256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
