"""The models that turn the slices of queries into vectors, loaded once and kept; and how one is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import WeightsError
from medret.search.options import SearchOptions
from medret.snapshot import RecipeEntry
from medret.storage import redacted

if TYPE_CHECKING:
    from medret.models import Encoder

Embed = Callable[[NDArray[Any]], NDArray[np.float32]]  # images as the model is fed -> (n, dim) outputs of the model

RANDOM = re.compile(r"random(:[0-9]{1,18})?")


class Encoders:
    """Encoders by recipe, weights and device. Snapshots that are opened one after another may share them."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str | None, str], Encoder] = {}
        self._loading = Lock()

    def embed(self, entry: RecipeEntry, options: SearchOptions) -> Embed:
        """The function that embeds slices as a recipe says; raises WeightsError when the model cannot be loaded."""
        weights, device = options.weights_of(entry.model), options.device
        key = (entry.digest, weights, device)
        with self._loading:  # of two threads that need a model, one loads it
            if key not in self._loaded:
                self._loaded[key] = load_encoder(entry, weights, device)
            return self._loaded[key].embed


def load_encoder(entry: RecipeEntry, weights_uri: str | None, device: str) -> Encoder:
    """The encoder of a recipe, its weights checked against the recipe's sha256.

    weights_uri: path or URI of the weights; None: found by the model's name, or drawn from the same seed again.
    Raises WeightsError when they cannot be loaded or are not those of the recipe.
    """
    from medret.models import Encoder, model_spec, resolve_device, resolve_weights, stated_by

    recipe = entry.load()
    source = weights_uri
    if weights_uri is None and entry.weights_uri is not None:
        if not RANDOM.fullmatch(entry.weights_uri):  # an address: whoever made the store chose it
            raise WeightsError(
                f"the weights of {recipe.model.name} were loaded from {redacted(entry.weights_uri)}, which only the "
                f"store names; give them with --weights {recipe.model.name}=FILE"
            )
        source = entry.weights_uri
    spec = model_spec(recipe.model.name, source, stated_by(recipe.model))
    weights = resolve_weights(spec, source)
    if weights.sha256 != recipe.model.weights_sha256:
        raise WeightsError(
            f"weights of {recipe.model.name} ({weights.source}) have sha256 {weights.sha256[:16]}.., the snapshot was "
            f"made with {recipe.model.weights_sha256[:16]}.. ({entry.weights_source}): vectors of different "
            f"weights cannot be compared, so give those with --weights {recipe.model.name}=FILE"
        )
    resolved = resolve_device(device)  # type: ignore[arg-type]  # it checks the text itself
    return Encoder(spec, weights, device=resolved, precision=recipe.model.precision)
