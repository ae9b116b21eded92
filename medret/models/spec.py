"""The facts about a model that are known before its weights are read: plain, picklable data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any, Literal

from medret.errors import UsageError, first_line
from medret.recipe import USUAL, Contract, Images

Triple = tuple[float, float, float]
Family = Literal["timm", "dreamsim", "hf", "open_clip", "package"]
TextTowerKind = Literal["", "clip", "siglip", "open_clip"]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class PackageFile:
    """A file inside an installed Python distribution. path: below site-packages."""

    distribution: str
    path: str


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository on the Hugging Face hub.

    names: tried in this order. revision: branch, tag or commit; None for the hub's default branch.
    """

    repo: str
    names: tuple[str, ...]
    revision: str | None = None


@dataclass(frozen=True)
class UrlFile:
    """A file published at an address. archive: a zip whose members are the weight files."""

    url: str
    archive: bool = False

    @property
    def name(self) -> str:
        """The file's name, the last part of its address."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Folder:
    """A folder on this machine, named by the model's name."""

    path: str


Origin = PackageFile | HubFile | UrlFile | Folder


@dataclass(frozen=True)
class WeightPart:
    """One file that a model needs.

    role: its key in `Weights.files`. names: of the published file, best first, each matched against the end of a path;
    empty: the only file that looks like a checkpoint.
    """

    role: str
    names: tuple[str, ...] = ()


ONE_FILE = (WeightPart("weights"),)


@dataclass(frozen=True)
class Stated:
    """What a user states about a model's input, in place of the model's own files (`--model-config`).

    None: not stated. contract: fields of `medret.recipe.Contract`.
    """

    image_size: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    contract: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """A model by name.

    dim: width of its vectors, layers included.
    image_size: side of the square input, in px.
    mean, std: per channel, in units of [0, 1] intensity (0 and 1 where the model normalises by itself).
    licence: of the weights, as their publisher names it.
    trained_on: data and method.
    source: the published files, in words, for messages.
    origins: where the files are fetched from when the user gives none; empty: the user must give a file.
    parts: the files of the weights.
    family, architecture, options: how the module is built.
    interpolation: how its training images were resampled, for information.
    by_order: the checkpoint uses other tensor names and is matched by order and shape.
    config_json: the configuration of an `hf:` model.
    layers: inner layers whose pooled features follow the model's output in the vector (medret.models.timm_models).
    fuse_bn: whether batch norms go into the convolutions before them (medret.models.fusing), unless bf16 loses by it.
    gmacs: 10^9 multiply-adds per slice, by which models that run together share cores or GPUs; 0 if unknown.
    contract: what the model is fed, and which of its outputs is the vector.
    words: the kind of its text tower, if its vectors lie in a space shared with words (medret.models.words); or empty.
    terms: what a user has to accept before using the weights, if anything: said before any work.
    """

    name: str
    family: Family
    architecture: str
    dim: int
    image_size: int
    mean: Triple
    std: Triple
    licence: str
    trained_on: str
    source: str
    origins: tuple[Origin, ...] = ()
    parts: tuple[WeightPart, ...] = ONE_FILE
    options: tuple[tuple[str, str | int], ...] = ()
    interpolation: str = "bicubic"
    by_order: bool = False
    config_json: str | None = None
    layers: tuple[str, ...] = ()
    fuse_bn: bool = True
    gmacs: float = 0.0
    contract: Contract = USUAL
    words: TextTowerKind = ""
    terms: str = ""

    @property
    def images(self) -> Images:
        """The images that the model is fed."""
        return self.contract.images(self.image_size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, side, side) of one image, as the network takes it."""
        return self.contract.channels, self.image_size, self.image_size


def words_of(content: dict[str, Any], pooling: str) -> TextTowerKind:
    """The kind of the text tower whose space the vectors share: SigLIP's always do, CLIP's if they are projected."""
    kind = content.get("model_type")
    if kind == "siglip" and pooling in ("default", "pooler", "projection") and "text_config" in content:
        return "siglip"
    return "clip" if kind == "clip" and pooling == "projection" else ""


def without_words(model: str) -> str:
    """Why a store of this model cannot be searched with words, and what to do."""
    return (
        f"{model} has no text tower, or its vectors are not in the space that it shares with words. To search with "
        "words, index with medsiglip, biomedclip, a SigLIP model (hf:NAME), or a CLIP model (hf:NAME with pooling = "
        '"projection" in a file for --model-config)'
    )


ENTRY_POINTS = "medret.models"  # the group in which other packages announce models


def packaged_names() -> tuple[str, ...]:
    """The names of the models that other installed packages bring."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=ENTRY_POINTS)}))


@cache
def packaged_spec(name: str) -> ModelSpec | None:
    """The model of that name from another package, or None.

    Its entry point is a ModelSpec, or a function that makes one; of family `package`, `architecture` names the function
    that builds the network, as `module:function`. Raises UsageError that names the package if that cannot be used.
    """
    found = next(iter(metadata.entry_points(group=ENTRY_POINTS, name=name)), None)
    if found is None:
        return None
    package = found.dist.name if found.dist else found.module
    try:
        made = found.load()
        spec = made() if callable(made) else made
    except Exception as error:  # whatever a package raises when it is imported
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"model '{name}' of the package {package} cannot be loaded: {problem}") from error
    if not isinstance(spec, ModelSpec) or spec.name != name:
        shown = spec.name if isinstance(spec, ModelSpec) else type(spec).__name__
        raise UsageError(f"model '{name}' of the package {package} is {shown}, expected a ModelSpec of that name")
    return spec
