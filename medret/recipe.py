"""The recipe: everything that decides the value of a vector. Every file made with it records its digest.

`SliceRecipe` says how bytes become slices; all models of a run share it, so each volume is decoded once.
`ModelRecipe` says how slices become vectors, its `Contract` what the model is fed. Compare two vectors only if their
recipe digests are equal.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError

Plane = Literal["axial", "coronal", "sagittal"]
Precision = Literal["fp32", "bf16"]
Range = tuple[float, float]
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
    slices: slice plan, `all`, `every:N`, `every:Nmm`, `uniform:N` or `random:N`.
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
class Drawing:
    """Images that are not plain: how slices are drawn for a model. Models of a run with equal drawings share images.

    Plain images, 8 bits of grey at one side, are named by that side alone. side: in px. The rest: see `Contract`.
    """

    side: int
    values: Literal["grey", "real"] = "grey"
    windows_hu: tuple[Range, ...] = ()
    clip_hu: Range | None = None
    orientation: Literal["radiological", "neurological"] = "radiological"
    resample: Literal["bilinear", "bicubic"] = "bilinear"


Images = int | Drawing  # the side of plain images in px, or a drawing


@dataclass(frozen=True)
class Contract:
    """What a model is fed and what is taken from it, where that is not the usual.

    The usual: slices through the run's window as 8 bits of grey, repeated over three channels, normalised by mean and
    std. Of a contract only what differs from it is digested, so that recipes older than contracts keep their digests.

    channels: 3, or 1 for models of one channel. values: `grey`, or `real` for the stored values in their own unit (HU
    for CT) as float32. windows_hu: (low, high) of one window per channel, for CT; other modalities have no scale, and
    their grey stands in every channel. clip_hu: real values of CT are clipped to it. normalise: `fixed` by mean and
    std (in the unit of `values`), `image` by the mean and the sample standard deviation of each image. orientation:
    `radiological`, or `neurological` with the patient's left on the left of axial and coronal slices. resample: the
    filter of resizing. pooling: `default` is the model's own; `cls` the class token, `mean` the mean over patches,
    `pooler` the pooled output, `projection` the projection into the space that images share with words.
    """

    channels: Literal[1, 3] = 3
    values: Literal["grey", "real"] = "grey"
    windows_hu: tuple[Range, ...] = ()
    clip_hu: Range | None = None
    normalise: Literal["fixed", "image"] = "fixed"
    orientation: Literal["radiological", "neurological"] = "radiological"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    pooling: Literal["default", "cls", "mean", "pooler", "projection"] = "default"

    def __post_init__(self) -> None:
        windows = tuple((float(low), float(high)) for low, high in self.windows_hu)  # 80 and 80.0 are one contract
        object.__setattr__(self, "windows_hu", windows)
        if self.clip_hu is not None:
            object.__setattr__(self, "clip_hu", (float(self.clip_hu[0]), float(self.clip_hu[1])))
        for low, high in (*self.windows_hu, *([self.clip_hu] if self.clip_hu else [])):
            if not -math.inf < low < high < math.inf:
                raise UsageError(f"the range {low:g} to {high:g} HU is not two ascending numbers")
        if self.windows_hu and (self.values != "grey" or len(self.windows_hu) != self.channels):
            raise UsageError(
                f"{len(self.windows_hu)} windows for {self.channels} channels of {self.values} values: expected one "
                "window per channel, and values 'grey'"
            )
        if self.clip_hu and self.values != "real":
            raise UsageError("clip_hu is of values 'real'; grey values have a window")

    def images(self, side: int) -> Images:
        """The images that the model is fed, at a side in px."""
        drawing = Drawing(side, self.values, self.windows_hu, self.clip_hu, self.orientation, self.resample)
        return side if drawing == Drawing(side) else drawing

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from the usual."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Contract:
        """The inverse of `to_json`; raises TypeError for what this version does not know."""
        if not isinstance(content, dict):
            raise TypeError(f"a contract is a {type(content).__name__}, expected an object")
        return cls(**content)


USUAL = Contract()


@dataclass(frozen=True)
class ModelRecipe:
    """How square slices become vectors.

    name: value of `--model`. weights_sha256: of the weight file or files. image_size: input side in pixels.
    mean, std: per channel, for intensities in [0, 1], or for real values in their unit. dim: width of a vector.
    layers: inner layers whose pooled features are appended to the model's output. contract: what the model is fed.
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
    contract: Contract = USUAL

    @property
    def images(self) -> Images:
        """The images that the model is fed."""
        return self.contract.images(self.image_size)


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
        del model["contract"]  # a recipe without one looks as it did before there were contracts
        if self.model.contract != USUAL:
            model["contract"] = self.model.contract.to_json()
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
        if "contract" in model:
            model["contract"] = Contract.from_json(model["contract"])
        recipe = cls(SliceRecipe(**slices), ModelRecipe(**model))
        if recipe.digest != content["digest"]:
            raise UsageError(f"the recipe's digest is {recipe.digest}, but the record says {content['digest']}")
        return recipe


def stack_shape(images: Images) -> tuple[int, ...]:
    """The shape of one image: (side, side), or (channels, side, side) where channels have windows of their own."""
    if isinstance(images, int):
        return images, images
    square = (images.side, images.side)
    return (len(images.windows_hu), *square) if images.windows_hu else square


def stack_dtype(images: Images) -> np.dtype[Any]:
    """uint8 for grey values, float32 for real ones."""
    return np.dtype(np.float32 if isinstance(images, Drawing) and images.values == "real" else np.uint8)


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
