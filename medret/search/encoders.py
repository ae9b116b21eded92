"""The models that turn the slices and the words of queries into vectors, loaded once and kept; how one is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError, WeightsError
from medret.recipe import PIXELS_VERSION, VECTORS_VERSION
from medret.search.options import SearchOptions
from medret.snapshot import RecipeEntry
from medret.storage import redacted

if TYPE_CHECKING:
    from medret.models import Encoder, ModelSpec, Weights
    from medret.models.words import TextEncoder

Embed = Callable[[NDArray[Any]], NDArray[np.float32]]  # images as the model is fed -> (n, dim) outputs of the model

RANDOM = re.compile(r"random(:[0-9]{1,18})?")


class Encoders:
    """Encoders by recipe, weights and device. Snapshots that are opened one after another may share them."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str | None, str], Encoder] = {}
        self._of_words: dict[tuple[str, str | None, str], TextEncoder] = {}
        self._loading = Lock()

    def embed(self, entry: RecipeEntry, options: SearchOptions) -> Embed:
        """The function that embeds slices as a recipe says; raises WeightsError when the model cannot be loaded."""
        weights, device = options.weights_of(entry.model), options.device
        key = (entry.digest, weights, device)
        with self._loading:  # of two threads that need a model, one loads it
            if key not in self._loaded:
                self._loaded[key] = load_encoder(entry, weights, device)
            return self._loaded[key].embed

    def directions(self, entry: RecipeEntry, options: SearchOptions, text: str) -> NDArray[np.float32]:
        """The (dim,) direction of a text in the space of a recipe's images, from the centre of texts about volumes.

        Raises UsageError for a model without a text tower, WeightsError when it cannot be loaded.
        """
        weights, device = options.weights_of(entry.model), options.device
        key = (entry.digest, weights, device)
        with self._loading:
            if key not in self._of_words:
                self._of_words[key] = load_text_encoder(entry, weights, device)
            direction: NDArray[np.float32] = self._of_words[key].directions([text])[0]
            return direction


def takes_words(entry: RecipeEntry, weights_uri: str | None) -> bool:
    """Whether a recipe's model takes words, from its name, its recipe and its configuration: no weights are read.

    The configuration of an `hf:` model is looked for on this machine alone; without it only a recipe that names the
    projection tells of words. weights_uri: as for `load_encoder`.
    """
    from medret.models import OPEN_PREFIXES, model_spec
    from medret.models.hub import config_here
    from medret.models.spec import words_of

    try:
        if not entry.model.startswith(OPEN_PREFIXES):
            return bool(model_spec(entry.model).words)
        library, _, model = entry.model.partition(":")
        if library != "hf":
            return False
        pooling = entry.load().model.contract.pooling
        config = config_here(model, weights_uri)
        return bool(words_of(config, pooling)) if config else pooling == "projection"
    except UsageError:  # a package that announced the model, or the library of the hub, is not installed here
        return False


def load_text_encoder(entry: RecipeEntry, weights_uri: str | None, device: str) -> TextEncoder:
    """The text tower of a recipe's model, from the same weights; arguments and errors as for `load_encoder`."""
    from medret.models import resolve_device
    from medret.models.words import TextEncoder

    spec, weights, source = _model_of(entry, weights_uri, words=True)
    resolved = resolve_device(device)  # type: ignore[arg-type]  # it checks the text itself
    return TextEncoder(spec, weights, source, device=resolved)


def load_encoder(entry: RecipeEntry, weights_uri: str | None, device: str) -> Encoder:
    """The encoder of a recipe, its weights checked against the recipe's sha256.

    weights_uri: path or URI of the weights; None: found by the model's name, or drawn from the same seed again.
    Raises WeightsError when they cannot be loaded or are not those of the recipe.
    """
    from medret.models import Encoder, resolve_device

    spec, weights, _ = _model_of(entry, weights_uri)
    resolved = resolve_device(device)  # type: ignore[arg-type]  # it checks the text itself
    return Encoder(spec, weights, device=resolved, precision=entry.load().model.precision)


def _model_of(
    entry: RecipeEntry, weights_uri: str | None, *, words: bool = False
) -> tuple[ModelSpec, Weights, str | None]:
    """The model of a recipe, its weights, and where they are if that was named. words: it must have a text tower."""
    from medret.models import model_spec, resolve_weights, stated_by
    from medret.models.spec import without_words

    recipe = entry.load()
    versions = recipe.slices.pixels_version, recipe.model.vectors_version
    if versions != (PIXELS_VERSION, VECTORS_VERSION):
        raise UsageError(
            f"vectors of {recipe.model.name} in the snapshot have the versions {versions} (pixels, vectors), those "
            f"that this medret makes {PIXELS_VERSION, VECTORS_VERSION}: they cannot be compared; search with the id of "
            "a volume, or index again"
        )
    source = weights_uri
    if weights_uri is None and entry.weights_uri is not None:
        if not RANDOM.fullmatch(entry.weights_uri):  # an address: whoever made the store chose it
            raise WeightsError(
                f"the weights of {recipe.model.name} were loaded from {redacted(entry.weights_uri)}, which only the "
                f"store names; give them with --weights {recipe.model.name}=FILE"
            )
        source = entry.weights_uri
    spec = model_spec(recipe.model.name, source, stated_by(recipe.model))
    if words and not spec.words:
        raise UsageError(without_words(spec.name))
    weights = resolve_weights(spec, source)
    if weights.sha256 != recipe.model.weights_sha256:
        raise WeightsError(
            f"weights of {recipe.model.name} ({weights.source}) have sha256 {weights.sha256[:16]}.., the snapshot was "
            f"made with {recipe.model.weights_sha256[:16]}.. ({entry.weights_source}): vectors of different "
            f"weights cannot be compared, so give those with --weights {recipe.model.name}=FILE"
        )
    return spec, weights, source
