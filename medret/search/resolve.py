"""From what a user asks to vectors: looking up a volume, or reading, slicing and embedding a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.search.contents import Contents
from medret.search.encoding import encode_query, load_encoder, read_query, read_volume_query, sha256_of, slice_query
from medret.search.hit import Range
from medret.search.matching import SliceVectors
from medret.search.narrow import chosen_slices, slice_weights, within
from medret.search.options import ResolveOptions
from medret.search.query import Query, QueryVectors, aggregated, is_file, load_array, refuse_table, vector_query
from medret.search.region import PARTS, SliceRange, parse_box, parse_range
from medret.snapshot import RecipeEntry
from medret.storage import normalise_uri

if TYPE_CHECKING:
    from medret.models import Encoder
    from medret.volume.region import Region


class Resolver:
    """Turns queries into vectors; keeps the encoders that it loaded."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._encoders: dict[tuple[str, str | None, str], Encoder] = {}

    def resolve(self, query: Query, entry: RecipeEntry, aggregation: str, options: ResolveOptions) -> QueryVectors:
        """The vectors of a query as the indices of one recipe and aggregation hold them.

        Raises UsageError for what cannot be asked.
        """
        raw = self._resolve(query, entry, aggregation, options)
        index = self._contents.index(entry, aggregation)
        volume = index.centred(raw.volume[None])
        if raw.slices.positions is None:  # one volume vector, which stands as its own only slice
            return replace(raw, volume=volume[0], slices=replace(raw.slices, vectors=volume))
        vectors = self._contents.index(entry, None).centred(raw.slices.vectors)
        return replace(raw, volume=volume[0], slices=replace(raw.slices, vectors=vectors))

    def _resolve(self, query: Query, entry: RecipeEntry, aggregation: str, options: ResolveOptions) -> QueryVectors:
        """The vectors of a query as the recipe gives them."""
        parts = [name for name in PARTS if options.get(name)]
        if len(parts) > 1:
            raise UsageError(f"{' and '.join(parts)} both say which part of the query is meant: give one of them")
        if isinstance(query, str | os.PathLike) and os.fspath(query).endswith(".npy") and is_file(query):
            query = load_array(read_query(normalise_uri(query)), os.fspath(query))
        if isinstance(query, np.ndarray):
            if parts:
                raise UsageError(f"{parts[0]} names a part of a volume, but the query is an array of vectors: slice it")
            found = vector_query(query, int(entry.recipe["model"]["dim"]), parse_aggregation(aggregation))
            return self._narrowed(found, None, aggregation, options)
        if not isinstance(query, str | os.PathLike):
            raise UsageError(f"query is a {type(query).__name__}, expected a path, a URI, a volume_id or a numpy array")
        if is_file(query):
            return self._file(normalise_uri(query), None, entry, aggregation, options)
        return self._volume(os.fspath(query), entry, aggregation, options)

    def _volume(self, volume_id: str, entry: RecipeEntry, aggregation: str, options: ResolveOptions) -> QueryVectors:
        row = self._contents.ledger.row(volume_id)
        if row is None:
            raise UsageError(
                f"query '{volume_id}' is neither a file nor a volume of snapshot {self._contents.id}: give the path or "
                "URI of a NIfTI file, or a volume_id as hits show it"
            )
        (held,) = self._contents.stored(entry, aggregation, [row])
        if held is None:
            raise UsageError(f"query '{volume_id}' has no vectors in this snapshot ({row.problem or 'not indexed'})")
        if options.get("box") or options.get("mask"):
            return self._file(self._contents.readable(row), volume_id, entry, aggregation, options)
        volume = self._contents.index(entry, aggregation).uncentred(held.vectors().vectors)
        slices = SliceVectors(volume, [None], None)
        (held,) = self._contents.stored(entry, None, [row])
        if held:
            stored = held.vectors()
            slices = replace(stored, vectors=self._contents.index(entry, None).uncentred(stored.vectors))
        spacing_mm = self._contents.ledger.spacing_mm(volume_id)
        found = QueryVectors(volume_id, frozenset([volume_id]), volume[0], slices, spacing_mm=spacing_mm)
        wanted = _range(options, _planes(entry))
        places = None
        if wanted or options.get("query_slices") or options.get("query_weights"):
            places = self._contents.slice_places(entry, row, slices)
        if wanted and places:
            kept = within(slices, places, wanted, volume_id)
            found = replace(found, slices=slices.only(kept), asked=_asked(wanted))
            places = places.only(kept)
            of_range = aggregated(found.slices, places.relative, parse_aggregation(aggregation), volume_id)
            found = replace(found, volume=of_range)
        return self._narrowed(found, places.relative if places else None, aggregation, options)

    def _file(
        self, uri: str, own_id: str | None, entry: RecipeEntry, aggregation: str, options: ResolveOptions
    ) -> QueryVectors:
        recipe = entry.load()
        wanted = _range(options, _planes(entry))
        box = parse_box(box_text) if (box_text := options.get("box")) else None
        data = read_volume_query(uri)
        refuse_table(data, uri, recipe.digest)
        own_ids = [own_id] if own_id else self._contents.ledger.ids_with_content(sha256_of(data))
        volume_id, label = self._contents.identify(uri, own_ids)
        region = box or _region(options, wanted, data)
        planes = tuple(name for name in recipe.slices.planes if wanted is None or name == wanted.plane)
        modality = options.get("modality") or label
        volume = slice_query(data, uri, volume_id, recipe, modality, region=region, planes=planes)
        encoded = encode_query(volume, uri, recipe, self._encoder(entry, options).embed)
        vector = aggregated(encoded.slices, encoded.relative, parse_aggregation(aggregation), volume_id)
        asked = _sliced(wanted.plane, volume.facts.crop_box) if wanted else None
        found = QueryVectors(uri, frozenset(own_ids), vector, encoded.slices, asked=asked)
        if not volume.facts.spacing_assumed:
            found = replace(found, spacing_mm=volume.facts.spacing_mm)
        return self._narrowed(found, encoded.relative, aggregation, options)

    def _narrowed(
        self, query: QueryVectors, relative: NDArray[np.float32] | None, aggregation: str, options: ResolveOptions
    ) -> QueryVectors:
        """The slices that the query's own slice plan keeps, and their weights."""
        plan, weights = options.get("query_slices"), options.get("query_weights")
        if not plan and not weights:
            return query
        if relative is None:  # an array: its slices count as evenly spaced
            count = len(query.slices)
            relative = np.linspace(0, 1, count, dtype=np.float32) if count > 1 else np.full(1, 0.5, np.float32)
        if plan and query.slices.positions is not None:
            kept = chosen_slices(plan, query.slices, query.label)
            slices, relative = query.slices.only(kept), relative[kept]
            query = replace(query, slices=slices)
            volume = aggregated(slices, relative, parse_aggregation(aggregation), query.label)
            query = replace(query, volume=volume)
        return replace(query, weights=slice_weights(weights, relative, query.label)) if weights else query

    def _encoder(self, entry: RecipeEntry, options: ResolveOptions) -> Encoder:
        weights, device = options.get("weights"), options.get("device", "auto")
        key = (str(entry.recipe["digest"]), weights, device)
        if key not in self._encoders:
            self._encoders[key] = load_encoder(entry, weights, device)
        return self._encoders[key]


def _planes(entry: RecipeEntry) -> Sequence[str]:
    planes: Sequence[str] = entry.recipe["slices"]["planes"]
    return planes


def _range(options: ResolveOptions, planes: Sequence[str]) -> SliceRange | None:
    text, plane = options.get("slices"), options.get("plane")
    if not text:
        if plane:
            raise UsageError(f"plane '{plane}' is of a range of slices: give slices too, such as 40:58")
        return None
    wanted = parse_range(text, plane or planes[0])
    if wanted.plane not in planes:
        raise UsageError(
            f"the snapshot holds no {wanted.plane} slices, only {', '.join(planes)}: range {text} of those"
        )
    return wanted


def _region(options: ResolveOptions, wanted: SliceRange | None, data: bytes) -> Region | None:
    mask = options.get("mask")
    if mask:
        from medret.volume.region import mask_region

        return mask_region(read_query(normalise_uri(mask)), data)
    return wanted.region() if wanted else None


def _asked(wanted: SliceRange) -> Range | None:
    return None if wanted.mm else (int(wanted.first), int(wanted.last))


def _sliced(plane: str, crop_box: tuple[Sequence[int], Sequence[int]]) -> Range:
    from medret.volume.slicing import AXIS

    return int(crop_box[0][AXIS[plane]]), int(crop_box[1][AXIS[plane]]) - 1
