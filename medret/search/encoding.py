"""A NIfTI file to vectors, exactly as the snapshot's recipe says. Only this part of search needs torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import unit_slices
from medret.errors import NotFoundError, UsageError, VolumeError, WeightsError
from medret.recipe import Plane, Recipe
from medret.search.matching import SliceVectors
from medret.snapshot import RecipeEntry
from medret.storage import read_uri, redacted

if TYPE_CHECKING:
    from medret.models import Encoder
    from medret.volume import SlicedVolume
    from medret.volume.region import Region


RANDOM = re.compile(r"random(:[0-9]{1,18})?")


@dataclass(frozen=True)
class EncodedVolume:
    """Slice vectors of a query volume. relative: (n,) float32 positions in [0, 1], which aggregations weigh by."""

    slices: SliceVectors
    relative: NDArray[np.float32]


def read_query(uri: str) -> bytes:
    """The bytes of a query; raises UsageError or StorageError naming it."""
    try:
        return read_uri(uri)
    except FileNotFoundError as error:
        raise NotFoundError(f"query {redacted(uri)}: no such file") from error


def read_volume_query(uri: str) -> bytes:
    """The bytes of a query that is a volume, as `read_query`; one that cannot be a volume is not read whole."""
    from medret.volume import Limits, fetch_volume

    try:
        return fetch_volume(uri, Limits())
    except FileNotFoundError as error:
        raise NotFoundError(f"query {redacted(uri)}: no such file") from error
    except VolumeError as error:
        raise UsageError(f"query {redacted(uri)} cannot be used: {error.code}: {error.reason}") from error


def sha256_of(data: bytes) -> str:
    """The sha256 of a file's bytes, as the ledger's content_sha256."""
    return hashlib.sha256(data).hexdigest()


def load_encoder(entry: RecipeEntry, given: str | None, device: str) -> Encoder:
    """The encoder of a recipe, its weights checked against the recipe's sha256.

    given: path or URI of the weights; None: they are had by the model's name, or were drawn from a seed.
    Raises WeightsError when they cannot be had or are others.
    """
    from medret.models import Encoder, model_spec, resolve_device, resolve_weights

    recipe = entry.load()
    wanted = given
    if given is None and entry.weights_uri is not None:
        if not RANDOM.fullmatch(entry.weights_uri):  # an address: whoever made the store chose it
            raise WeightsError(
                f"the weights of {recipe.model.name} were loaded from {redacted(entry.weights_uri)}, which only the "
                f"store names; give them with --weights {recipe.model.name}=FILE"
            )
        wanted = entry.weights_uri
    spec = model_spec(recipe.model.name, wanted)
    weights = resolve_weights(spec, wanted)
    if weights.sha256 != recipe.model.weights_sha256:
        raise WeightsError(
            f"weights of {recipe.model.name} ({weights.source}) have sha256 {weights.sha256[:16]}.., the snapshot was "
            f"made with {recipe.model.weights_sha256[:16]}.. ({entry.weights_source}): vectors of different "
            f"weights cannot be compared, so give those with --weights {recipe.model.name}=FILE"
        )
    found = resolve_device(device)  # type: ignore[arg-type]  # it checks the text itself
    return Encoder(spec, weights, device=found, precision=recipe.model.precision)


def slice_query(
    data: bytes,
    name: str,
    volume_id: str,
    recipe: Recipe,
    modality: str | None,
    *,
    region: Region | None = None,
    planes: Sequence[Plane] | None = None,
) -> SlicedVolume:
    """Bytes to slices; raises UsageError naming the file, the quarantine code and the reason.

    region: the part of the volume that is the query. planes: those that are sliced, by default the recipe's.
    """
    from medret.volume import read_volume

    slices = recipe.slices if planes is None else replace(recipe.slices, planes=tuple(planes))
    try:
        return read_volume(data, volume_id, slices, [recipe.model.image_size], modality=modality, region=region)
    except UsageError as error:
        raise UsageError(f"query {name}: {error}") from error
    except VolumeError as error:
        raise UsageError(f"query {name} cannot be used: {error.code}: {error.reason}") from error


def encode_query(
    volume: SlicedVolume, name: str, recipe: Recipe, embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
) -> EncodedVolume:
    """Slices to unit vectors, rounded to float16 as stored ones are; raises UsageError when the model gives none."""
    try:
        vectors, _ = unit_slices(embed(volume.pixels[recipe.model.image_size]))
    except VolumeError as error:
        raise UsageError(f"query {name} cannot be used: {error.code}: {error.reason}") from error
    slices = SliceVectors(
        vectors.astype(np.float32),
        [ref.plane for ref in volume.slices],
        np.array([ref.slice_index for ref in volume.slices], np.int64),
    )
    return EncodedVolume(slices, np.array([ref.relative_position for ref in volume.slices], np.float32))
