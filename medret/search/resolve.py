"""From what a user asks to vectors: looking up a volume, or reading, slicing and embedding a file."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.search.contents import Contents
from medret.search.encoding import encode_query, load_encoder, read_query, sha256_of, slice_query
from medret.search.matching import SliceVectors
from medret.search.query import Query, QueryVectors, aggregated, is_file, vector_query
from medret.snapshot import RecipeEntry
from medret.storage import normalise_uri

if TYPE_CHECKING:
    from medret.models import Encoder


@dataclass(frozen=True)
class FileOptions:
    """How queries that are files are turned into vectors. weights: path or URI, None for those the snapshot names."""

    weights: str | None = None
    modality: str | None = None
    device: str = "auto"


class Resolver:
    """Turns queries into vectors; keeps the encoders that it loaded."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._encoders: dict[tuple[str, str | None, str], Encoder] = {}

    def resolve(self, query: Query, entry: RecipeEntry, aggregation: str, options: FileOptions) -> QueryVectors:
        """The vectors of a query under one recipe and aggregation; raises UsageError for what cannot be asked."""
        if isinstance(query, np.ndarray):
            asked = vector_query(query, int(entry.recipe["model"]["dim"]), parse_aggregation(aggregation))
            return self._seen_from_centre(asked, entry, aggregation)
        if not isinstance(query, str | os.PathLike):
            raise UsageError(f"query is a {type(query).__name__}, expected a path, a URI, a volume_id or a numpy array")
        if is_file(query):
            return self._file(normalise_uri(query), entry, aggregation, options)
        return self._volume(os.fspath(query), entry, aggregation)

    def _volume(self, volume_id: str, entry: RecipeEntry, aggregation: str) -> QueryVectors:
        row = self._contents.ledger.row(volume_id)
        if row is None:
            raise UsageError(
                f"query '{volume_id}' is neither a file nor a volume of snapshot {self._contents.id}: give the path or "
                "URI of a NIfTI file, or a volume_id as hits show it"
            )
        stored = self._contents.index(entry, aggregation).vectors_of(volume_id)
        if stored is None:
            raise UsageError(f"query '{volume_id}' has no vectors in this snapshot ({row.problem or 'not indexed'})")
        slices = self._contents.index(entry, None).vectors_of(volume_id)
        return QueryVectors(
            volume_id, frozenset([volume_id]), stored.vectors[0], slices or SliceVectors(stored.vectors, [None], None)
        )

    def _file(self, uri: str, entry: RecipeEntry, aggregation: str, options: FileOptions) -> QueryVectors:
        recipe = entry.load()
        data = read_query(uri)
        own_ids = self._contents.ledger.ids_with_content(sha256_of(data))
        volume_id, modality = self._contents.identify(uri, own_ids)
        volume = slice_query(data, uri, volume_id, recipe, options.modality or modality)
        encoded = encode_query(volume, uri, recipe, self._encoder(entry, options).embed)
        vector = aggregated(encoded.slices, encoded.relative, parse_aggregation(aggregation), volume_id)
        return self._seen_from_centre(QueryVectors(uri, frozenset(own_ids), vector, encoded.slices), entry, aggregation)

    def _seen_from_centre(self, query: QueryVectors, entry: RecipeEntry, aggregation: str) -> QueryVectors:
        """Vectors as the recipe gives them -> as the indices hold them; those read from an index are so already."""
        volume = self._contents.index(entry, aggregation).centred(query.volume[None])[0]
        slices = query.slices
        if slices.positions is not None:
            slices = replace(slices, vectors=self._contents.index(entry, None).centred(slices.vectors))
        else:  # one volume vector, which stands as its own only slice
            slices = replace(slices, vectors=volume[None])
        return replace(query, volume=volume, slices=slices)

    def _encoder(self, entry: RecipeEntry, options: FileOptions) -> Encoder:
        key = (str(entry.recipe["digest"]), options.weights, options.device)
        if key not in self._encoders:
            self._encoders[key] = load_encoder(entry, options.weights, options.device)
        return self._encoders[key]
