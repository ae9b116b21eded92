"""What a snapshot holds: its recipes, indices and ledger, each opened when it is first needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.embeddings import Slices, parse_aggregation
from medret.embeddings.parquet import as_corrupt, judged, open_parquet, read_parquet
from medret.errors import CorruptError, DroppedError, MedretError, NotFoundError, UsageError
from medret.index import CENTRE_KIND, IndexSettings, centre_of
from medret.schemas import FILES, SLICE_COLUMNS, TOMBSTONES
from medret.search.cache import LocalFiles
from medret.search.candidates import MANY, CandidateFilter, QueryGroup, excluded_of, query_groups
from medret.search.index_search import ScoredRow, ShardedIndex, ShardFiles, StoredRows
from medret.search.ledger import Ledger, LedgerRow, Refused, place_of, read_label_table
from medret.search.modes import Indices, rank_volumes
from medret.search.options import LATE, NONE, SELF, VOLUME, SearchOptions, weighted_names
from medret.search.query import QueryVectors
from medret.snapshot import Manifest, RecipeEntry
from medret.snapshot.files import StoredFile, read_index_files
from medret.snapshot.liveness import dead_volumes
from medret.snapshot.manifest import MANIFEST, TableKind, snapshot_folder
from medret.snapshot.names import check_files
from medret.storage import Location

if TYPE_CHECKING:
    import pyarrow.compute as pc

FILTERS_KEPT = 16


@dataclass(frozen=True)
class Member:
    """One model with one aggregation: one member of an ensemble. weight: above 0, relative to the other members'."""

    entry: RecipeEntry
    aggregation: str
    weight: float = 1.0

    @property
    def model(self) -> str:
        """The model's name."""
        return self.entry.model


class Contents:
    """The parts of one snapshot by name. models, aggregations: names; the first of each is the default."""

    def __init__(self, store: Location, snapshot_id: str, manifest: Manifest, archive: str | None = None) -> None:
        self.uri = store.uri
        self._archive = archive
        self._store = store
        self.id = snapshot_id
        self.manifest = manifest
        self.models = tuple(entry.model for entry in manifest.recipes)
        self.aggregations = tuple(manifest.aggregations)
        self._local = LocalFiles(store)
        self.settings = IndexSettings.from_json(manifest.index_settings)
        self._index_files = [file for path in self._tables("files") for file in read_index_files(path)]
        self._indices: dict[tuple[str, str | None], ShardedIndex] = {}
        self._kept_by_text = lru_cache(FILTERS_KEPT)(self._kept)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Context for reading files: raises DroppedError if one is missing because the snapshot was removed."""
        try:
            yield
        except (CorruptError, FileNotFoundError) as error:
            if not self._store.exists(f"{snapshot_folder(self.id)}/{MANIFEST}"):
                raise DroppedError(
                    f"snapshot {self.id} is no longer in {self.uri}: it was removed while it was open; open the store "
                    "again for the live one"
                ) from error
            if isinstance(error, FileNotFoundError):
                raise CorruptError(f"{error.filename or error} is missing: restore it, or index again") from error
            raise

    @cached_property
    def ledger(self) -> Ledger:
        """Labels, URIs and outcomes by volume_id."""
        return Ledger(self._tables("ledger"), self._tables("changes"))

    @cached_property
    def labels(self) -> pa.Table:
        """The labels of all embedded volumes, in volume_id order."""
        return read_label_table(self._tables("ledger"), self._tables("changes"))

    @cached_property
    def _dead(self) -> dict[str, set[str]]:
        """Index shard -> the volumes whose rows in it are dead."""
        dead: dict[str, set[str]] = {}
        for path in self._tables("tombstones"):
            file = open_parquet(path, str(path), TOMBSTONES)
            with as_corrupt(str(path)):
                for key, volume_ids in dead_volumes(judged(file.read(), path.stat().st_size)).items():
                    dead.setdefault(key, set()).update(volume_ids)
        return dead

    def _tables(self, kind: TableKind) -> list[Path]:
        return [self._local.path(table.path, table.sha256) for table in self.manifest.tables_of(kind)]

    def recipe(self, model: str | None) -> RecipeEntry:
        """The recipe of a model; raises UsageError that names the models there are."""
        if model is None:
            return self.manifest.recipes[0]
        if model not in self.models:
            raise UsageError(f"model '{model}' is not in snapshot {self.id}, which has {', '.join(self.models)}")
        return self.manifest.recipes[self.models.index(model)]

    def aggregation(self, name: str | None) -> str:
        """The canonical name of an aggregation; raises UsageError that names the aggregations there are."""
        if name is None:
            return self.aggregations[0]
        canonical = parse_aggregation(name).name
        if canonical not in self.aggregations:
            known = ", ".join(self.aggregations)
            raise UsageError(f"aggregation '{canonical}' is not in snapshot {self.id}, which has {known}")
        return canonical

    def identify(self, uri: str, volume_ids: Sequence[str]) -> tuple[str, str | None]:
        """The id and the modality label that a file is sliced with. volume_ids: volumes that have the same bytes.

        A file of the archive is sliced as in the archive: `random:N` draws from the id, the window follows the label.
        """
        row = self.ledger.row(volume_ids[0]) if volume_ids else None
        return (volume_ids[0], row.labels["modality"]) if row else (PurePosixPath(uri).name, None)

    def place(self, row: LedgerRow) -> str:
        """Where a volume is read, or `Refused`."""
        archive = self.manifest.archive_uri
        return place_of(row.volume_id, row.uri, archive=archive, store=self.uri, user_archive=self._archive)

    def readable(self, row: LedgerRow) -> str:
        """Where a volume is read; raises UsageError if it is not."""
        place = self.place(row)
        if isinstance(place, Refused):
            raise UsageError(f"{row.volume_id} cannot be read: {place.reason}")
        return place

    def _kept(self, where: str | pc.Expression) -> CandidateFilter:
        """The volumes that a filter keeps; raises UsageError."""
        from medret.search.filters import kept_rows, parse_filter

        condition = parse_filter(where, self.labels) if isinstance(where, str) else where
        return CandidateFilter(self.labels["volume_id"].combine_chunks(), kept_rows(condition, self.labels))

    def excluded(self, queries: Sequence[QueryVectors], exclude: str) -> list[frozenset[str]]:
        """The volumes that each query must not find, as the option `exclude` says; raises UsageError."""
        if exclude in (NONE, SELF):
            return [query.volume_ids if exclude == SELF else frozenset[str]() for query in queries]
        return excluded_of(queries, exclude, self.labels)

    def query_groups(self, excluded: Sequence[AbstractSet[str]], where: str | pc.Expression | None) -> list[QueryGroup]:
        """Groups of queries that are searched together, and what they may find; raises UsageError for the filter."""
        if where is None:
            kept = None
        else:  # the last filters are kept; an expression has no hash
            kept = self._kept_by_text(where) if isinstance(where, str) else self._kept(where)
        masked = any(len(volume_ids) > MANY for volume_ids in excluded)
        ids = self.labels["volume_id"].combine_chunks() if masked else None
        return list(query_groups(excluded, kept, ids))

    def indices(self, member: Member, options: SearchOptions) -> Indices:
        """The indices that a mode searches; raises UsageError when one was not built."""
        kind, mode = options.index, options.used_mode
        volumes = self._built(member.entry, member.aggregation, kind) if mode in (VOLUME, LATE) else None
        slices = self._built(member.entry, None, kind) if mode != VOLUME else None
        return Indices(kind, volumes, slices)

    def rank(
        self,
        member: Member,
        queries: Sequence[QueryVectors],
        k: int,
        groups: Iterable[QueryGroup],
        options: SearchOptions,
    ) -> list[list[ScoredRow]]:
        """At most k volumes per query, best first; see `Snapshot.rank`."""
        indices = self.indices(member, options)
        ranked: list[list[ScoredRow]] = [[] for _ in queries]
        for group in groups:
            rankings = rank_volumes([queries[number] for number in group.queries], k, indices, group, options)
            for number, ranking in zip(group.queries, rankings, strict=True):
                ranked[number] = ranking
        return ranked

    def _built(self, entry: RecipeEntry, aggregation: str | None, kind: str) -> ShardedIndex:
        index = self.index(entry, aggregation)
        if not index.rows:
            raise NotFoundError(
                f"snapshot {self.id} of {self.uri} is empty: its volumes were forgotten or removed from the archive; "
                f"`medret index ARCHIVE {self.uri}` fills it"
            )
        if kind not in index.kinds:
            built = ", ".join(index.kinds) or f"none over {'slice' if aggregation is None else 'volume'} vectors"
            raise UsageError(f"index '{kind}' is not in snapshot {self.id}, which has {built}")
        return index

    def members(self, options: SearchOptions) -> list[Member]:
        """Pair each model of the options with each aggregation; raises UsageError for an unknown name."""
        models = [(self.recipe(name), weight) for name, weight in weighted_names("model", options.model)]
        aggregations = [
            (self.aggregation(name), weight) for name, weight in weighted_names("aggregation", options.aggregation)
        ]
        return [Member(entry, name, first * second) for entry, first in models for name, second in aggregations]

    def with_positions(self, entry: RecipeEntry, row: LedgerRow, slices: Slices) -> Slices:
        """The indexed slices of a volume with where they lie, from the Parquet shard that holds their vectors.

        Slices are looked up by plane and index: the shard orders the slices of a volume by the recipe's planes, the
        index by the planes' names.
        """
        import pyarrow.compute as pc

        assert slices.slice_indices is not None
        digest = entry.digest
        for path in self._tables("files"):
            listed = read_parquet(path.read_bytes(), name=str(path), fields=list(FILES)).to_pylist()
            key = ("slices", digest, row.shards.get(digest, ""))
            listed_slices = [file for file in listed if (file["kind"], file["recipe"], file["shard"]) == key]
            with as_corrupt(str(path)):
                check_files(listed_slices)
            for file in listed_slices:
                local = self._local.path(file["path"], file["sha256"])
                columns = ["plane", "position", "relative", "position_mm"]
                parquet = open_parquet(local, str(local), SLICE_COLUMNS)
                with as_corrupt(str(local)):
                    table = judged(parquet.read(["volume_id", *columns]), local.stat().st_size)
                table = table.filter(pc.equal(table["volume_id"], row.volume_id))
                if table.num_rows:
                    plane, position, relative, mm = (table[name].to_pylist() for name in columns)
                    at = {key: number for number, key in enumerate(zip(plane, position, strict=True))}
                    indexed_keys = zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)
                    order = [at.get(key, -1) for key in indexed_keys]
                    if -1 not in order:
                        relative_position, position_mm = (
                            np.array(column, np.float32)[order] for column in (relative, mm)
                        )
                        return replace(slices, relative_position=relative_position, position_mm=position_mm)
        raise MedretError(
            f"snapshot {self.id}: no file has the indexed slice vectors of {row.volume_id}; run `medret verify`"
        )

    def index(self, entry: RecipeEntry, aggregation: str | None) -> ShardedIndex:
        """The index over the volume vectors of an aggregation or, for None, over the slice vectors."""
        key = (entry.digest, aggregation)
        if key not in self._indices:
            files, dim = [file for file in self._index_files if (file.recipe, file.aggregation) == key], entry.dim
            centre = next((self._centre(file, dim) for file in files if file.kind == CENTRE_KIND), None)
            shards = group_shards([file for file in files if file.kind != CENTRE_KIND], self._dead)
            self._indices[key] = ShardedIndex(shards, dim, self.settings, self._local, centre)
        return self._indices[key]

    def stored(self, entry: RecipeEntry, aggregation: str | None, rows: Iterable[LedgerRow]) -> list[StoredRows | None]:
        """Where the vectors of volumes lie in an index; None for volumes without vectors there."""
        digest, index, indexed_in = entry.digest, self.index(entry, aggregation), self._indexed_in
        keys = ((row.volume_id, (digest, aggregation, row.shards.get(digest, ""))) for row in rows)
        return [index.stored(volume_id, indexed_in.get(key)) for volume_id, key in keys]

    @cached_property
    def _indexed_in(self) -> dict[tuple[str, str | None, str], str]:
        """(recipe, aggregation, embedding shard) -> the index shard that holds its vectors, where that is known."""
        indexed_in: dict[tuple[str, str | None, str], str] = {}
        for path in self._tables("files"):
            names = ["recipe", "aggregation", "shard", "indexed_in"]
            file = open_parquet(path, str(path), FILES)
            with as_corrupt(str(path)):
                *keys, index_shards = (
                    column.to_pylist() for column in judged(file.read(names), path.stat().st_size).columns
                )
            indexed_in |= {
                key: shard for key, shard in zip(zip(*keys, strict=True), index_shards, strict=True) if shard
            }
        return indexed_in

    def _centre(self, file: StoredFile, dim: int) -> NDArray[np.float32]:
        path = self._local.path(file.path, file.sha256)
        return centre_of(path.read_bytes(), str(path), dim)


def group_shards(files: Iterable[StoredFile], dead: Mapping[str, AbstractSet[str]]) -> list[ShardFiles]:
    """Group index files into shards, ordered by key. dead: volumes under tombstones, by key."""
    shards: dict[str, dict[str, StoredFile]] = {}
    for file in files:
        shards.setdefault(file.shard or "", {})[file.kind] = file
    return [
        ShardFiles(
            key,
            next(iter(members.values())).rows,
            {kind: (file.path, file.sha256) for kind, file in members.items()},
            frozenset(dead.get(key, ())),
        )
        for key, members in sorted(shards.items())
    ]
