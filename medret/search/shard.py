"""One index shard: its files are checked and mapped when they are first needed, and it is searched alone.

A shard of a store that is searched together with others holds directions from the centre of its own store. Its exact
vectors are then `moved` to the centre that all share, so that scores of all stores compare; its HNSW and LSH files find
candidates as before, with queries that are tilted to their own centre.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import Slices, plane_codes
from medret.embeddings.slices import joined
from medret.index import (
    EXACT,
    JUDGES,
    MISSING,
    ROWS_KIND,
    Distinct,
    ExactIndex,
    IndexSettings,
    Neighbours,
    RowTable,
    Searchable,
    gpu_available,
    open_approximate,
    open_exact,
)
from medret.index.approximate import Walked
from medret.index.exact import best_first
from medret.search.cache import LocalFiles
from medret.search.candidates import CandidateFilter
from medret.search.matching import late_scores
from medret.search.query import Volume

# Up to this many excluded rows per query are searched in excess and then removed; beyond that, each group of queries
# searches with a FAISS selector of its own.
EXCESS_MAX = 64
CHUNK_ROWS = 8192  # stored slices in memory as float64 at the same time
CHUNK_CELLS = 8 << 20  # cosines in memory at the same time


@dataclass(frozen=True)
class ShardFiles:
    """One shard as the FILES table lists it.

    files: kind -> (path below the store, sha256). dead: volumes whose rows here are no longer part of the snapshot.
    """

    key: str
    rows: int
    files: Mapping[str, tuple[str, str]]
    dead: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Exclusion:
    """Rows of a shard that some queries must not find. queries: their numbers."""

    queries: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Moved:
    """How a shard is seen from another centre than its own.

    exact: makes or finds the file of its exact vectors, given its row table. walked: see `ApproximateIndex`.
    """

    exact: Callable[[ShardFiles, RowTable], Path]
    walked: Walked


class Shard:
    """One index shard. store: number of the store that it belongs to. moved: None if it is searched as it is."""

    def __init__(
        self,
        listed: ShardFiles,
        dim: int,
        settings: IndexSettings,
        local: LocalFiles,
        store: int = 0,
        moved: Moved | None = None,
    ) -> None:
        self.listed = listed
        self._dim = dim
        self._settings = settings
        self._local = local
        self._moved = moved
        self._opened: dict[str, Searchable] = {}
        self.key, self.rows, self.store = listed.key, listed.rows, store
        self.kinds = listed.files.keys() - {ROWS_KIND}

    @cached_property
    def table(self) -> RowTable:
        """What each row is."""
        return RowTable.open(self._local.path(*self.listed.files[ROWS_KIND], RowTable.judge))

    @cached_property
    def exact(self) -> ExactIndex:
        """The vectors."""
        if self._moved:
            path = self._moved.exact(self.listed, self.table)
        else:
            path = self._local.path(*self.listed.files[EXACT], JUDGES[EXACT])
        return open_exact(path, rows=self.rows, dim=self._dim, use_gpu=gpu_available())

    @cached_property
    def _distinct(self) -> Distinct:
        return Distinct(self.table.same_as)

    def _index(self, kind: str) -> Searchable:
        if kind == EXACT:
            return self.exact
        if kind not in self._opened:
            path = self._local.path(*self.listed.files[kind], JUDGES[kind])
            walked = self._moved.walked if self._moved else None
            self._opened[kind] = open_approximate(path, kind, self.exact, self._distinct, self._settings, walked)
        return self._opened[kind]

    def rows_found(self, volume_id: str) -> slice | None:
        """The rows of a volume; None if a search cannot find it here."""
        rows = self.table.rows_of(volume_id)
        return rows if rows.stop > rows.start and volume_id not in self.listed.dead else None

    def rows_of(self, volumes: AbstractSet[Volume]) -> NDArray[np.int64]:
        """The rows of these volumes in this shard."""
        return self._rows_of(volume_id for volume_id, store in sorted(volumes) if store == self.store)

    def _rows_of(self, volume_ids: Iterable[str]) -> NDArray[np.int64]:
        slices = map(self.table.rows_of, volume_ids)
        rows = [np.arange(rows.start, rows.stop, dtype=np.int64) for rows in slices]
        return np.concatenate(rows) if rows else np.empty(0, np.int64)

    def places_of(self, kept: Sequence[CandidateFilter] | None) -> NDArray[np.int64]:
        """The kept volumes of this shard, as places: their numbers in `table.volumes`."""
        ids, firsts = self.table.volumes
        places = np.arange(len(firsts)) if kept is None else np.flatnonzero(kept[self.store].of(ids))
        return np.setdiff1d(places, self._dead_places) if len(self._dead_places) else places

    def places_named(self, volumes: AbstractSet[Volume]) -> NDArray[np.int64]:
        """The places of those of the volumes that this shard has and the snapshot includes, ascending."""
        return self._places({volume_id for volume_id, store in volumes if store == self.store} - self.listed.dead)

    def _places(self, volume_ids: AbstractSet[str]) -> NDArray[np.int64]:
        slices = [self.table.rows_of(volume_id) for volume_id in sorted(volume_ids)]
        rows = np.array([rows.start for rows in slices if rows.stop > rows.start], np.int64)
        return np.searchsorted(self.table.volumes[1], np.sort(rows))

    @cached_property
    def _dead_places(self) -> NDArray[np.int64]:
        return self._places(self.listed.dead)

    @cached_property
    def _dead_rows(self) -> NDArray[np.int64]:
        return self._rows_of(sorted(self.listed.dead))

    def first_rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of the volumes at these places."""
        return self.table.volumes[1][places]

    def _lengths(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows the volumes at these places have."""
        ends = np.append(self.table.volumes[1], len(self.table))
        lengths: NDArray[np.int64] = ends[places + 1] - ends[places]
        return lengths

    def slices(self, rows: slice) -> Slices:
        """The slices in consecutive rows; in an index over volume vectors they have no planes and indices."""
        table = self.table
        indices = [MISSING if index is None else index for index in table.slice_indices(rows)]
        vectors = self.exact.vectors(rows).astype(np.float32)
        return Slices(vectors, plane_codes(table.planes(rows)), np.array(indices, np.int64))

    def _slices_at(self, places: NDArray[np.int64]) -> Slices:
        """All slices of the volumes at these places, with float64 vectors."""
        lengths = self._lengths(places)
        starts = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(self.first_rows(places) - starts, lengths)
        return Slices(self.exact.vectors(rows).astype(np.float64), self.table.plane_codes(rows), starts=starts)

    def excluded_rows(self, kept: Sequence[CandidateFilter] | None) -> NDArray[np.int64] | None:
        """The rows here that no query may find: those of volumes that are not kept or no longer in the snapshot."""
        dead = self.listed.dead
        if kept is None:
            return self._dead_rows if dead else None
        ids, firsts = self.table.volumes
        lengths = np.diff(firsts, append=len(self.table))
        rows = np.flatnonzero(np.repeat(~kept[self.store].of(ids), lengths))
        return np.union1d(rows, self._dead_rows) if dead else rows

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        kind: str,
        exclusions: Sequence[Exclusion],
        excluded: NDArray[np.int64] | None = None,
    ) -> Neighbours:
        """The k best rows for each query. exclusions: rows that some queries must not find. excluded: rows for none."""
        index = self._index(kind)
        excess = max((len(exclusion.rows) for exclusion in exclusions), default=0)
        if not excess:
            return index.search(queries, k, excluded)
        if excess > EXCESS_MAX:
            width = min(k, index.rows)
            scores = np.full((len(queries), width), -np.inf, np.float32)
            rows = np.full((len(queries), width), MISSING, np.int64)
            for exclusion in exclusions:
                both = exclusion.rows if excluded is None else np.union1d(exclusion.rows, excluded)
                neighbours = index.search(queries[exclusion.queries], k, both)
                scores[exclusion.queries, : neighbours.rows.shape[1]] = neighbours.scores
                rows[exclusion.queries, : neighbours.rows.shape[1]] = neighbours.rows
            return Neighbours(scores, rows)
        neighbours = index.search(queries, k + excess, excluded)
        rows = neighbours.rows.copy()
        for exclusion in exclusions:
            of_queries = rows[exclusion.queries]
            rows[exclusion.queries] = np.where(np.isin(of_queries, exclusion.rows), MISSING, of_queries)
        return best_first(neighbours.scores, rows, min(k, index.rows))

    def late(
        self, queries: Sequence[Slices], places: NDArray[np.int64], symmetric: bool, same_plane: bool
    ) -> NDArray[np.float64]:
        """(queries, places) late-interaction scores, rounded to float32 so that equal volumes score the same anywhere.

        queries: the slices of each, with float64 vectors.
        """
        scores = np.zeros((len(queries), len(places)))
        lengths = np.array([len(query) for query in queries])
        for part in _bounded(self._lengths(places), CHUNK_ROWS):
            stored = self._slices_at(places[part])
            for some in _bounded(lengths, CHUNK_CELLS // len(stored)):
                asked = joined(queries[some])
                scores[some, part] = late_scores(asked, stored, symmetric=symmetric, same_plane=same_plane)
        return scores.astype(np.float32).astype(np.float64)


def _bounded(lengths: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Slices of consecutive items whose lengths sum to at most `most`, or of a single longer item."""
    start = total = 0
    for number, length in enumerate(lengths.tolist()):
        if total and total + length > most:
            yield slice(start, number)
            start, total = number, 0
        total += length
    if len(lengths):
        yield slice(start, len(lengths))
