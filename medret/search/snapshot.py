"""Opening a snapshot and searching it.

Opening reads CURRENT, the manifest and the table of files. Index files, ledger and models are opened when a search
first needs them; ray is never imported, and torch only for queries that are files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import MedretError, StorageError, UsageError
from medret.index import EXACT
from medret.recipe import Recipe
from medret.search.contents import Contents
from medret.search.hit import Hit, SliceMatch
from medret.search.ledger import LedgerRow
from medret.search.matching import SliceVectors, best_pair, match_of
from medret.search.merge import Found, merge_slices
from medret.search.query import Query, QueryVectors, is_file
from medret.search.resolve import FileOptions, Resolver
from medret.search.shards import ShardedIndex
from medret.snapshot import RecipeEntry, current_id, read_manifest
from medret.snapshot.manifest import snapshot_folder
from medret.storage import Location, normalise_uri

VOLUME, SLICE = "volume", "slice"
MODES = (VOLUME, SLICE)
EXCLUDES = ("none", "self")


def open_snapshot(uri: str | os.PathLike[str], snapshot_id: str | None = None) -> Snapshot:
    """Open the live snapshot of a store, or an older one by its id.

    Raises UsageError when there is no store, nothing was published, or the store has no such snapshot; CorruptError
    when what is there is damaged.
    """
    store = Location(uri)
    try:
        live = current_id(store)
        if live is None:
            problem = "no snapshot was published there yet" if store.exists("") else "no store is there"
            raise UsageError(f"{store.uri}: {problem}; `medret index ARCHIVE {store.uri}` publishes one")
        wanted = snapshot_id or live
        if wanted != live and not store.exists(f"{snapshot_folder(wanted)}/manifest.json"):
            raise UsageError(f"{store.uri} has no snapshot '{wanted}'; its live one is {live}")
        return Snapshot(Contents(store, wanted, read_manifest(store, wanted)))
    except StorageError as error:
        raise UsageError(str(error)) from error


class Snapshot:
    """One immutable, complete set of vectors and indices; `open_snapshot` gives one.

    uri, id, manifest: what was opened. models, aggregations: names; the first of each is searched by default.
    """

    def __init__(self, contents: Contents) -> None:
        self.uri = contents.uri
        self.id = contents.id
        self.manifest = contents.manifest
        self.models = contents.models
        self.aggregations = contents.aggregations
        self._contents = contents
        self._resolver = Resolver(contents)

    def __repr__(self) -> str:
        return f"<Snapshot {self.id} of {self.uri}>"

    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        model: str | None = None,
        aggregation: str | None = None,
        index: str = "hnsw",
        mode: str = VOLUME,
        exclude: str = "none",
        weights: str | None = None,
        modality: str | None = None,
        device: str = "auto",
    ) -> list[Hit]:
        """The k hits most similar to a query, best first; see `search_many`."""
        return self.search_many(
            [query],
            k,
            model=model,
            aggregation=aggregation,
            index=index,
            mode=mode,
            exclude=exclude,
            weights=weights,
            modality=modality,
            device=device,
        )[0]

    def search_many(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        model: str | None = None,
        aggregation: str | None = None,
        index: str = "hnsw",
        mode: str = VOLUME,
        exclude: str = "none",
        weights: str | None = None,
        modality: str | None = None,
        device: str = "auto",
    ) -> list[list[Hit]]:
        """The k hits most similar to each query, best first; the indices are searched once for all queries.

        A query is the path or URI of a NIfTI file, the volume_id of a volume of this snapshot (its stored vectors are
        used: no model), a (dim,) volume vector or an (n, dim) array of slice vectors. A text that names both a file
        and a volume is the file.
        model, aggregation: default to the snapshot's first. index: hnsw | lsh | exact.
        mode: `volume` compares volume vectors; in `slice` every slice of the query finds slices, and each hit is one.
        exclude: `self` leaves out the query's own volume. weights, device, modality: for queries that are files;
        weights is a path or URI where they lie elsewhere than when the snapshot was made.
        Raises UsageError for what cannot be asked; CorruptError when a file of the snapshot is damaged.
        """
        _check(k, mode, exclude)
        entry = self._contents.recipe(model)
        asked = [
            self.resolve(query, model=model, aggregation=aggregation, weights=weights, modality=modality, device=device)
            for query in queries
        ]
        excluded = [query.own_ids if exclude == "self" else frozenset[str]() for query in asked]
        if mode == SLICE:
            return self._by_slice(asked, k, index, self._index(entry, None, index), excluded)
        found = self.rank(asked, k, model=model, aggregation=aggregation, index=index, mode=mode, excluded=excluded)
        stored = self._contents.index(entry, None)
        hits = []
        for query, ranked in zip(asked, found, strict=True):
            slices = [stored.vectors_of(one.volume_id) for one in ranked]
            hits.append(self._hits(ranked, [best_pair(query.slices, own) if own else None for own in slices]))
        return hits

    def labels(self) -> pa.Table:
        """The embedded volumes in volume_id order: volume_id, uri, subject, modality, body_region, organ, metadata.

        Each metadata key is one string column, null where a volume has none. Read once and kept.
        """
        return self._contents.labels

    def resolve(
        self,
        query: Query,
        *,
        model: str | None = None,
        aggregation: str | None = None,
        weights: str | None = None,
        modality: str | None = None,
        device: str = "auto",
    ) -> QueryVectors:
        """The vectors of a query in the space of the indices; see `search_many`."""
        options = FileOptions(weights, modality, device)
        return self._resolver.resolve(
            query, self._contents.recipe(model), self._contents.aggregation(aggregation), options
        )

    def rank(
        self,
        queries: Sequence[QueryVectors],
        k: int,
        *,
        model: str | None = None,
        aggregation: str | None = None,
        index: str = EXACT,
        mode: str = VOLUME,
        excluded: Sequence[AbstractSet[str]] | None = None,
        where: str | None = None,
    ) -> list[list[Found]]:
        """At most k volumes for each query, best first, equal scores in the order of volume_id.

        k may be the number of volumes: then every volume is ranked. excluded: for each query the
        volume_ids that must not be found. model, aggregation: the same that the queries were resolved with.
        """
        entry = self._contents.recipe(model)
        searched = self._index(entry, self._contents.aggregation(aggregation), index)
        vectors = np.array([query.volume for query in queries], np.float32).reshape(-1, searched.dim)
        return searched.search(vectors, k, index, excluded)

    def nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        model: str | None = None,
        aggregation: str | None = None,
        index: str = "hnsw",
        excluded: Sequence[AbstractSet[str]] | None = None,
    ) -> list[list[Found]]:
        """The k volumes nearest to each of (q, dim) float32 unit vectors: the bare search, without labels or slices.

        excluded: for each query the volume_ids that must not be found.
        """
        searched = self._contents.index(self._contents.recipe(model), self._contents.aggregation(aggregation))
        return searched.search(vectors, k, index, excluded)

    def slices_of(self, volume_id: str, model: str | None = None) -> SliceVectors | None:
        """The stored slice vectors of a volume; None when the snapshot has none of it."""
        return self._contents.index(self._contents.recipe(model), None).vectors_of(volume_id)

    def volume(self, volume_id: str) -> LedgerRow | None:
        """What the ledger says about a volume; None when it does not know it."""
        return self._contents.ledger.row(volume_id)

    def recipe(self, model: str | None = None) -> Recipe:
        """The recipe of a model's vectors."""
        return self._contents.recipe(model).load()

    def identify(self, uri: str, sha256: str) -> tuple[str, str | None]:
        """The volume_id and modality label that a file with these bytes is sliced with."""
        return self._contents.identify(uri, self._contents.ledger.ids_with_content(sha256))

    def uri_of_query(self, query: Query) -> str | None:
        """Where a query's voxels can be read: its own path or URI, that of the volume it names, None for an array."""
        if isinstance(query, np.ndarray):
            return None
        if is_file(query):
            return normalise_uri(query)
        row = self.volume(os.fspath(query))
        return row.uri if row else None

    def _index(self, entry: RecipeEntry, aggregation: str | None, kind: str) -> ShardedIndex:
        searched = self._contents.index(entry, aggregation)
        if kind not in searched.kinds:
            there = ", ".join(searched.kinds) or f"none over {'slice' if aggregation is None else 'volume'} vectors"
            raise UsageError(f"index '{kind}' is not in snapshot {self.id}, which has {there}")
        return searched

    def _by_slice(
        self,
        asked: Sequence[QueryVectors],
        k: int,
        kind: str,
        searched: ShardedIndex,
        excluded: Sequence[AbstractSet[str]],
    ) -> list[list[Hit]]:
        vectors = [vector for query in asked for vector in query.slices.vectors]
        own_ids = [ids for query, ids in zip(asked, excluded, strict=True) for _ in range(len(query.slices))]
        found = searched.search(np.array(vectors, np.float32).reshape(-1, searched.dim), k, kind, own_ids)
        hits, start = [], 0
        for query in asked:
            by_slice = found[start : start + len(query.slices)]
            start += len(query.slices)
            best = merge_slices(by_slice, k)
            hits.append(self._hits([one for one, _ in best], [_match(query, *pair, searched) for pair in best]))
        return hits

    def _hits(self, found: Sequence[Found], matches: Sequence[SliceMatch | None]) -> list[Hit]:
        rows = self._contents.ledger.rows({one.volume_id for one in found})
        hits = []
        for rank, (one, match) in enumerate(zip(found, matches, strict=True), start=1):
            row = rows.get(one.volume_id)
            if row is None:
                raise MedretError(f"snapshot {self.id}: its ledger has no row of {one.volume_id}; run `medret verify`")
            score = min(one.score, 1.0)  # float16 lengths may exceed 1 by a little
            hits.append(Hit(rank, one.volume_id, row.uri, score, row.labels, match))
        return hits


def _match(query: QueryVectors, found: Found, own: int, searched: ShardedIndex) -> SliceMatch:
    return match_of(query.slices, own, searched.vector_at(found), 0, found.score)


def _check(k: Any, mode: str, exclude: str) -> None:
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise UsageError(f"k is {k!r}, expected a whole number of hits, at least 1")
    if mode not in MODES:
        raise UsageError(f"mode '{mode}' is not available; there are {', '.join(MODES)}")
    if exclude not in EXCLUDES:
        raise UsageError(f"exclude '{exclude}' is not available; there are {', '.join(EXCLUDES)}")
