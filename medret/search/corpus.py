"""What is searched together: the volumes of one snapshot, or of several whose vectors have the same recipe.

A single snapshot is a corpus of one. Everything that a search needs of all volumes stands here; what belongs to one
store alone is in its `Contents`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from medret.embeddings import parse_aggregation
from medret.errors import CorruptError, MedretError, NotFoundError, UsageError
from medret.index.rows import SortedIds
from medret.schemas import LABELS
from medret.search.answers_kept import keep_answers
from medret.search.basis import shared_centre
from medret.search.candidates import MANY, CandidateFilter, QueryGroup, excluded_of, query_groups
from medret.search.comparable import check_centred, shared_aggregations, shared_recipes
from medret.search.contents import Contents
from medret.search.index_search import IndexKey, ScoredRow, ShardedIndex, Spread, StoredRows
from medret.search.ledger import LedgerRow
from medret.search.modes import Indices, rank_volumes
from medret.search.options import LATE, NONE, SELF, VOLUME, SearchOptions, weighted_names
from medret.search.query import QueryVectors, Volume
from medret.snapshot import RecipeEntry
from medret.storage import is_text

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


class Corpus:
    """The volumes of one or more snapshots.

    models, aggregations: names that all have; the first of each is the default. Raises UsageError for snapshots that
    cannot be searched together. spread: see `ShardedIndex`. only: a filter; volumes that it does not keep count as not
    there.
    """

    def __init__(self, stores: Sequence[Contents], spread: Spread | None = None, only: str | None = None) -> None:
        self.stores = tuple(stores)
        self._spread = spread
        self._only = only
        if twice := [uri for uri, times in Counter(contents.uri for contents in stores).items() if times > 1]:
            raise UsageError(f"{twice[0]} is named more than once: each of its volumes would be found as often")
        self._recipes = shared_recipes(stores)
        self.models = tuple(entry.model for entry in self._recipes)
        self.aggregations = shared_aggregations(stores)
        check_centred(stores, self)
        self._indices: dict[IndexKey, ShardedIndex] = {}
        self._kept_by_text = keep_answers(self._kept, FILTERS_KEPT)

    def __str__(self) -> str:
        one, *others = (f"{contents.id} of {contents.uri}" for contents in self.stores)
        return f"snapshots {', '.join([one, *others])}" if others else f"snapshot {one}"

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Context for reading files: raises DroppedError if one is missing because its snapshot was removed."""
        try:
            yield
        except (CorruptError, FileNotFoundError) as error:
            for contents in self.stores:
                contents.check_present(error)
            if isinstance(error, FileNotFoundError):
                raise CorruptError(f"{error.filename or error} is missing: restore it, or index again") from error
            raise

    def restricted(self, where: str) -> Corpus:
        """This corpus as if it held only the volumes that a filter keeps; raises UsageError for the filter."""
        both = where if self._only is None else f"({self._only}) and ({where})"
        corpus = Corpus(self.stores, self._spread, both)
        corpus._indices = self._indices  # of the same class: what is open is opened once
        assert corpus.labels is not None  # parses the filter now
        return corpus

    @property
    def is_restricted(self) -> bool:
        """Whether only the volumes that a filter keeps are there."""
        return self._only is not None

    @cached_property
    def labels(self) -> tuple[pa.Table, ...]:
        """Per store the labels of its embedded volumes, in volume_id order; all have the same columns."""
        tables = [contents.labels for contents in self.stores]
        names = dict.fromkeys(name for table in tables for name in table.column_names)
        tables = [table if table.column_names == list(names) else _with_columns(table, names) for table in tables]
        return tuple(tables if self._only is None else _only(tables, self._only))

    @cached_property
    def _visible(self) -> tuple[SortedIds, ...] | None:
        """Per store the volumes that are there; None for all."""
        if self._only is None:
            return None
        return tuple(SortedIds(labels["volume_id"].combine_chunks()) for labels in self.labels)

    def sees(self, volume: Volume) -> bool:
        """Whether the corpus holds an embedded volume, or is not restricted."""
        if self._visible is None:
            return True
        found = self._visible[volume[1]].find(volume[0])
        return bool(found.stop > found.start)

    def recipe(self, model: str | None) -> RecipeEntry:
        """The recipe of a model; raises UsageError that names the models there are."""
        if model is None:
            return self._recipes[0]
        if model not in self.models:
            raise UsageError(f"model '{model}' is not in {self}, which has {', '.join(self.models)}")
        return self._recipes[self.models.index(model)]

    def aggregation(self, name: str | None) -> str:
        """The canonical name of an aggregation; raises UsageError that names the aggregations there are."""
        if name is None:
            return self.aggregations[0]
        canonical = parse_aggregation(name).name
        if canonical not in self.aggregations:
            raise UsageError(f"aggregation '{canonical}' is not in {self}, which has {', '.join(self.aggregations)}")
        return canonical

    def members(self, options: SearchOptions) -> list[Member]:
        """Pair each model of the options with each aggregation; raises UsageError for an unknown name."""
        models = [(self.recipe(name), weight) for name, weight in weighted_names("model", options.model)]
        aggregations = [
            (self.aggregation(name), weight) for name, weight in weighted_names("aggregation", options.aggregation)
        ]
        return [Member(entry, name, first * second) for entry, first in models for name, second in aggregations]

    def index(self, entry: RecipeEntry, aggregation: str | None) -> ShardedIndex:
        """The index over the volume vectors of an aggregation or, for None, over the slice vectors."""
        key, dim = (entry.digest, aggregation), entry.dim
        if key not in self._indices:
            centre = shared_centre([contents.centre(key, dim) for contents in self.stores])
            shards = [
                shard
                for number, contents in enumerate(self.stores)
                for shard in contents.shards(key, dim, number, centre)
            ]
            ids = tuple(contents.id for contents in self.stores)
            self._indices[key] = ShardedIndex(key, shards, centre, ids, self._spread)
        return self._indices[key]

    def indices(self, member: Member, options: SearchOptions) -> Indices:
        """The indices that a mode searches; raises UsageError when one was not built."""
        kind, mode = options.index, options.used_mode
        volumes = self._built(member.entry, member.aggregation, kind) if mode in (VOLUME, LATE) else None
        slices = self._built(member.entry, None, kind) if mode != VOLUME else None
        return Indices(kind, volumes, slices)

    def _built(self, entry: RecipeEntry, aggregation: str | None, kind: str) -> ShardedIndex:
        index = self.index(entry, aggregation)
        if not index.rows:
            uris = ", ".join(contents.uri for contents in self.stores)
            raise NotFoundError(
                f"{self} is empty: its volumes were forgotten or removed from the archive; "
                f"`medret index ARCHIVE {uris}` fills it"
            )
        if kind not in index.kinds:
            built = ", ".join(index.kinds) or f"none over {'slice' if aggregation is None else 'volume'} vectors"
            raise UsageError(f"index '{kind}' is not in {self}, which has {built}")
        return index

    def stored(
        self, entry: RecipeEntry, aggregation: str | None, rows: Iterable[tuple[Volume, LedgerRow]]
    ) -> list[StoredRows | None]:
        """Where the vectors of volumes lie in an index; None for volumes without vectors there."""
        digest, index = entry.digest, self.index(entry, aggregation)
        indexed_in = [contents.indexed_in for contents in self.stores]
        keys = ((volume, (digest, aggregation, row.shards.get(digest, ""))) for volume, row in rows)
        return [index.stored(volume, indexed_in[volume[1]].get(key)) for volume, key in keys]

    def rows(self, volumes: Iterable[Volume]) -> dict[Volume, LedgerRow]:
        """The ledger's row of each volume; raises MedretError if there is none."""
        rows = {}
        for volume_id, store in set(volumes):
            row = self.stores[store].ledger.row(volume_id)
            if row is None:
                name = f"{self.stores[store].id} of {self.stores[store].uri}"
                raise MedretError(f"snapshot {name}: its ledger has no row of {volume_id}; run `medret verify`")
            rows[volume_id, store] = row
        return rows

    @property
    def volumes(self) -> int:
        """How many volumes a search may find."""
        if self._only is not None:
            return sum(labels.num_rows for labels in self.labels)
        counts = [contents.manifest.counts for contents in self.stores]
        return sum(count.embedded + count.unchanged for count in counts)

    def with_content(self, sha256: str) -> list[Volume]:
        """The embedded volumes whose bytes have that sha256, store by store; also as a series of that one object."""
        as_series = hashlib.sha256(bytes.fromhex(sha256)).hexdigest()  # see volume.content_sha256
        ids = [contents.ledger.ids_with_content(sha256, as_series) for contents in self.stores]
        volumes = [(volume_id, store) for store, of_store in enumerate(ids) for volume_id in of_store]
        return [volume for volume in volumes if self.sees(volume)]

    def identify(self, uri: str, volumes: Sequence[Volume]) -> tuple[str, str | None]:
        """The id and the modality label that a file is sliced with. volumes: those that have the same bytes.

        A file of an archive is sliced as in the archive: `random:N` draws from the id, the window follows the label.
        """
        if not volumes:
            return PurePosixPath(uri).name, None
        row = self.rows(volumes[:1])[volumes[0]]
        return row.volume_id, row.labels["modality"]

    def is_qualified(self, text: str) -> bool:
        """Whether a text begins with the URI of a store and `#`, as the names of volumes in `find` may."""
        return any(text.startswith(f"{contents.uri}#") for contents in self.stores)

    def find(self, text: str) -> tuple[Volume, LedgerRow] | None:
        """The volume that a text names: its id or, where several stores have one of that id, STORE#ID.

        Raises UsageError if it names several.
        """
        found = {}
        for number, contents in enumerate(self.stores if is_text(text) else ()):
            for volume_id in (text, text.removeprefix(f"{contents.uri}#")):
                row = contents.ledger.row(volume_id)
                if row is not None and self.sees((volume_id, number)):
                    found[volume_id, number] = row
        if len(found) > 1:
            uris = [self.stores[store].uri for _, store in found]
            raise UsageError(
                f"query '{text}' is a volume of {' and of '.join(uris)}: say which with '{uris[0]}#{text}' or with "
                f"'{uris[1]}#{text}'"
            )
        return next(iter(found.items()), None)

    def named(self, name: str | Volume) -> tuple[Volume, LedgerRow]:
        """A volume by a name that `find` knows, or itself, with its row; raises NotFoundError, UsageError as `find`."""
        found = self.find(name) if isinstance(name, str) else None
        if not isinstance(name, str) and 0 <= name[1] < len(self.stores) and self.sees(name):
            row = self.stores[name[1]].ledger.row(name[0])
            found = None if row is None else (name, row)
        if found is None:
            raise NotFoundError(f"{self} has no volume {name!r}: hits show the volume_id of each")
        return found

    def _kept(self, where: str | pc.Expression) -> list[CandidateFilter]:
        """Per store the volumes that a filter keeps; raises UsageError."""
        from medret.search.filters import kept_rows, parse_filter

        kept = []
        for labels in self.labels:
            condition = parse_filter(where, labels) if isinstance(where, str) else where
            kept.append(CandidateFilter(labels["volume_id"].combine_chunks(), kept_rows(condition, labels)))
        return kept

    @cached_property
    def _all_kept(self) -> list[CandidateFilter]:
        ids = [labels["volume_id"].combine_chunks() for labels in self.labels]
        return [CandidateFilter(of_store, np.ones(len(of_store), np.bool_)) for of_store in ids]

    def excluded(self, queries: Sequence[QueryVectors], exclude: str) -> list[frozenset[Volume]]:
        """The volumes that each query must not find, as the option `exclude` says; raises UsageError."""
        if exclude in (NONE, SELF):
            return [query.volumes if exclude == SELF else frozenset[Volume]() for query in queries]
        return excluded_of(queries, exclude, self.labels)

    def query_groups(
        self, excluded: Sequence[AbstractSet[Volume]], where: str | pc.Expression | None
    ) -> list[QueryGroup]:
        """Groups of queries that are searched together, and what they may find; raises UsageError for the filter."""
        if where is None and self._only is not None:
            kept = self._all_kept
        elif where is None:
            kept = None
        else:  # the last filters are kept; an expression has no hash
            kept = self._kept_by_text(where) if isinstance(where, str) else self._kept(where)
        masked = any(len(volumes) > MANY for volumes in excluded)
        ids = [labels["volume_id"].combine_chunks() for labels in self.labels] if masked else []
        return list(query_groups(excluded, kept, ids))

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


def _with_columns(table: pa.Table, names: Iterable[str]) -> pa.Table:
    present = set(table.column_names)
    columns = {name: table[name] if name in present else pa.nulls(table.num_rows, pa.string()) for name in names}
    return pa.table(columns)


def _only(tables: Sequence[pa.Table], where: str) -> list[pa.Table]:
    """The rows that a filter keeps, without the columns that only others have a value in; raises UsageError."""
    from medret.search.filters import kept_rows, parse_filter

    kept = [table.filter(pa.array(kept_rows(parse_filter(where, table), table))) for table in tables]
    filled = {name for table in kept for name in table.column_names if table[name].null_count < table.num_rows}
    names = [name for name in kept[0].column_names if name in filled or name in ("volume_id", "uri", *LABELS)]
    return [table.select(names) for table in kept]
