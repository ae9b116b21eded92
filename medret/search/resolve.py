"""From a query to vectors: look up a stored volume, or embed a file or words as the snapshot's recipe says.

Only files and words need torch, so it is imported only for them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medret.embeddings import Slices, parse_aggregation, plane_codes, unit_slices
from medret.errors import NotFoundError, UsageError, VolumeError
from medret.recipe import Plane, Recipe
from medret.search.corpus import Corpus, Member
from medret.search.encoders import Embed, Encoders
from medret.search.hit import Range
from medret.search.index_search import StoredRows
from medret.search.options import SearchOptions
from medret.search.query import (
    FileContent,
    Query,
    QueryVectors,
    SliceRange,
    Volume,
    VolumeName,
    Words,
    aggregated,
    chosen_slices,
    embedding_order,
    load_array,
    parse_box,
    parse_range,
    refuse_table,
    vector_query,
    weighted,
    whole_volume,
    within,
)
from medret.search.query_files import (
    File,
    is_file,
    is_series_in_folder,
    name_of,
    read_files,
    read_query,
    read_volume_query,
)
from medret.snapshot import RecipeEntry
from medret.storage import normalise_uri

if TYPE_CHECKING:
    from medret.volume import Content, Limits, SlicedVolume
    from medret.volume.slicing import Region


class Resolver:
    """Turns queries into vectors."""

    def __init__(self, corpus: Corpus, encoders: Encoders) -> None:
        self._corpus = corpus
        self._encoders = encoders

    def resolve(self, query: Query, member: Member, options: SearchOptions) -> QueryVectors:
        """The vectors of a query as the indices of one model and aggregation hold them.

        Raises UsageError for a query that cannot be searched with.
        """
        entry, aggregation = member.entry, member.aggregation
        if isinstance(query, Words):
            return self._words(query, entry, options)
        raw = self._resolve(query, entry, aggregation, options)
        index = self._corpus.index(entry, aggregation)
        volume = index.centred(raw.volume[None])
        if raw.slices.slice_indices is None:  # one volume vector is its own only slice
            return replace(raw, volume=volume[0], slices=replace(raw.slices, vectors=volume))
        vectors = self._corpus.index(entry, None).centred(raw.slices.vectors)
        return replace(raw, volume=volume[0], slices=replace(raw.slices, vectors=vectors))

    def _resolve(self, query: Query, entry: RecipeEntry, aggregation: str, options: SearchOptions) -> QueryVectors:
        """The vectors of a query as the recipe gives them, not centred."""
        if isinstance(query, str | os.PathLike) and os.fspath(query).endswith(".npy") and is_file(query):
            query = load_array(read_query(normalise_uri(query)), os.fspath(query))
        if isinstance(query, VolumeName):
            return self._volume(query.text, entry, aggregation, options)
        if isinstance(query, list | tuple | FileContent):
            return self._file(query, None, entry, aggregation, options)
        if isinstance(query, np.ndarray):
            if options.parts:
                raise UsageError(
                    f"{options.parts[0]} names a part of a volume, but the query is an array of vectors: slice it"
                )
            return _narrowed(
                vector_query(query, entry.dim, parse_aggregation(aggregation)), entry, aggregation, options
            )
        if not isinstance(query, str | os.PathLike):
            raise UsageError(
                f"query is a {type(query).__name__}, expected a path, a URI, a list of a "
                "series' files, a volume_id, Words or a numpy array"
            )
        if self.names_file(query):
            return self._file(normalise_uri(query), None, entry, aggregation, options)
        return self._volume(os.fspath(query), entry, aggregation, options)

    def _words(self, query: Words, entry: RecipeEntry, options: SearchOptions) -> QueryVectors:
        """Words as the indices hold images: as a direction, from the centre of words, not from that of images."""
        if options.parts or options.query_slices or options.query_weights:
            raise UsageError(f"query '{query.text}' is a text, which has no slices to choose from or to weigh")
        vector = self._encoders.directions(entry, options, query.text)
        return QueryVectors(f"'{query.text}'", frozenset(), vector, whole_volume(vector[None]))

    def _volume(self, text: str, entry: RecipeEntry, aggregation: str, options: SearchOptions) -> QueryVectors:
        found = self._corpus.find(text)
        if found is None:
            raise NotFoundError(
                f"query '{text}' is neither a file nor a volume of {self._corpus}: give the path or URI of a NIfTI "
                "file or of a DICOM folder, or a volume_id as hits show it"
            )
        volume, row = found
        volume_id, contents = volume[0], self._corpus.stores[volume[1]]
        (rows,) = self._corpus.stored(entry, aggregation, [found])
        if rows is None:
            raise UsageError(f"query '{volume_id}' has no vectors in this snapshot ({row.problem or 'not indexed'})")
        if options.box or options.mask:
            return self._file(contents.readable(row), volume, entry, aggregation, options)
        vector = self._corpus.index(entry, aggregation).uncentred(_stored(rows).vectors)
        slices = whole_volume(vector)
        (rows,) = self._corpus.stored(entry, None, [found])
        if rows:
            stored = _stored(rows)
            vectors = self._corpus.index(entry, None).uncentred(stored.vectors)
            slices = replace(stored, vectors=vectors, volume_id=volume_id)
        spacing_mm, sources = contents.ledger.spacing_mm(volume_id), contents.sources(entry, row)
        query = QueryVectors(volume_id, frozenset([volume]), vector[0], slices, spacing_mm=spacing_mm, sources=sources)
        slice_range = _range(options, _planes(entry))
        if slice_range or options.query_slices or options.query_weights:
            query = replace(query, slices=contents.with_positions(entry, row, slices))
        if slice_range:
            slices = within(query.slices, slice_range)
            of_range = aggregated(slices, parse_aggregation(aggregation))
            query = replace(query, slices=slices, volume=of_range, requested=_requested(slice_range))
        return _narrowed(query, entry, aggregation, options)

    def _file(
        self,
        file: str | Sequence[File] | FileContent,
        stored: Volume | None,
        entry: RecipeEntry,
        aggregation: str,
        options: SearchOptions,
    ) -> QueryVectors:
        """file: URI, the files of a series, or what was read. stored: the volume of the snapshot that it is."""
        from medret.volume import Limits, content_sha256

        recipe = entry.load()
        slice_range = _range(options, _planes(entry))
        box = parse_box(box_text) if (box_text := options.box) else None
        limits = Limits()
        if isinstance(file, FileContent):
            uri, data, limits = file.name, file.content, file.limits or limits
        elif isinstance(file, str):
            uri, data = file, read_volume_query(file)
        else:
            uri, data = name_of(file), read_files(file)
        refuse_table(data, uri, recipe.digest)
        volumes = [stored] if stored else self._corpus.with_content(content_sha256(data))
        volume_id, label = self._corpus.identify(uri, volumes)
        mask = file.mask if isinstance(file, FileContent) else None
        region = box or _region(options, slice_range, data, mask, limits)
        planes = tuple(name for name in recipe.slices.planes if slice_range is None or name == slice_range.plane)
        modality = options.modality or label
        volume = slice_query(data, uri, volume_id, recipe, modality, region=region, planes=planes, limits=limits)
        encoded = encode_query(volume, uri, recipe, self._encoders.embed(entry, options))
        slices = replace(encoded, volume_id=volume_id)
        vector = aggregated(slices, parse_aggregation(aggregation))
        requested = _sliced(slice_range.plane, volume.facts.crop_box) if slice_range else None
        sources = {(ref.plane, ref.slice_index): ref.source for ref in volume.slices if ref.source}
        query = QueryVectors(uri, frozenset(volumes), vector, slices, requested=requested, sources=sources)
        if not volume.facts.spacing_assumed:
            query = replace(query, spacing_mm=volume.facts.spacing_mm)
        return _narrowed(query, entry, aggregation, options)

    def names_file(self, query: File) -> bool:
        """Whether a query is a file, a folder or a URI, and not a volume of the snapshots."""
        text = os.fspath(query)
        if self._corpus.is_qualified(text) or not is_file(query):
            return False
        return "://" in text or not is_series_in_folder(text) or self._corpus.find(text) is None


def _stored(rows: StoredRows) -> Slices:
    shard, at = rows
    return shard.slices(at)


def _narrowed(query: QueryVectors, entry: RecipeEntry, aggregation: str, options: SearchOptions) -> QueryVectors:
    """The query with the slices that its slice plan keeps, and with their weights."""
    name = query.slices.volume_id or query.label  # a volume that is stored and its file draw the same slices
    if options.query_slices and query.slices.slice_indices is not None:
        slices = chosen_slices(options.query_slices, query.slices, name)
        order = embedding_order(slices, entry.planes)
        query = replace(query, slices=slices, volume=aggregated(slices.take(order), parse_aggregation(aggregation)))
    weights = options.query_weights
    return replace(query, slices=weighted(query.slices, weights, name)) if weights else query


def _planes(entry: RecipeEntry) -> Sequence[str]:
    planes: Sequence[str] = entry.planes
    return planes


def _range(options: SearchOptions, planes: Sequence[str]) -> SliceRange | None:
    text = options.slices
    if not text:
        return None
    slice_range = parse_range(text, options.plane or planes[0])
    if slice_range.plane not in planes:
        raise UsageError(
            f"the snapshot holds no {slice_range.plane} slices, only {', '.join(planes)}: range {text} of those"
        )
    return slice_range


def _region(
    options: SearchOptions, slice_range: SliceRange | None, data: Content, mask: Content | None, limits: Limits
) -> Region | None:
    """mask: what was read of it already."""
    if options.mask:
        from medret.volume.slicing import mask_region

        return mask_region(read_query(normalise_uri(options.mask)) if mask is None else mask, data, limits)
    return slice_range.region() if slice_range else None


def _requested(slice_range: SliceRange) -> Range | None:
    return None if slice_range.mm else (int(slice_range.first), int(slice_range.last))


def _sliced(plane: str, crop_box: tuple[Sequence[int], Sequence[int]]) -> Range:
    from medret.volume.slicing import AXIS

    return int(crop_box[0][AXIS[plane]]), int(crop_box[1][AXIS[plane]]) - 1


def slice_query(
    data: Content,
    name: str,
    volume_id: str,
    recipe: Recipe,
    modality: str | None,
    *,
    region: Region | None = None,
    planes: Sequence[Plane] | None = None,
    limits: Limits | None = None,
) -> SlicedVolume:
    """A volume to slices; raises UsageError naming the file, the quarantine code and the reason.

    region: the part of the volume that is the query. planes: those that are sliced, by default the recipe's.
    """
    from medret.volume import Limits, read_volume

    slices = recipe.slices if planes is None else replace(recipe.slices, planes=tuple(planes))
    try:
        return read_volume(
            data,
            volume_id,
            slices,
            [recipe.model.images],
            modality=modality,
            region=region,
            limits=limits or Limits(),
        )
    except UsageError as error:
        raise UsageError(f"query {name}: {error}") from error
    except VolumeError as error:
        raise UsageError(f"query {name} cannot be used: {error.code}: {error.reason}") from error


def encode_query(volume: SlicedVolume, name: str, recipe: Recipe, embed: Embed) -> Slices:
    """Slices to unit vectors, rounded to float16 as stored ones are; raises UsageError when the model gives none."""
    try:
        vectors, _ = unit_slices(embed(volume.pixels[recipe.model.images]))
    except VolumeError as error:
        raise UsageError(f"query {name} cannot be used: {error.code}: {error.reason}") from error
    return Slices(
        vectors.astype(np.float32),
        plane_codes([ref.plane for ref in volume.slices]),
        np.array([ref.slice_index for ref in volume.slices], np.int64),
        np.array([ref.relative_position for ref in volume.slices], np.float32),
        np.array([ref.position_mm for ref in volume.slices], np.float32),
    )
