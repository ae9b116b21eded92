"""One index of a snapshot: opens its shards when they are first needed, searches them and merges their results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache, cached_property
from heapq import nsmallest
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import Slices, plane_codes
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
    centred,
    gpu_available,
    open_approximate,
    open_exact,
    threads,
    uncentred,
)
from medret.index.neighbours import best_first
from medret.search.cache import LocalFiles
from medret.search.candidates import CandidateFilter

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
R = TypeVar("R")

# Up to this many excluded rows per query are searched in excess and then removed; beyond that, each group of queries
# searches with a FAISS selector of its own.
EXCESS_MAX = 64


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


class Shard:
    """One index shard. Each of its files is checked and mapped when it is first needed."""

    def __init__(self, listed: ShardFiles, dim: int, settings: IndexSettings, local: LocalFiles) -> None:
        self._listed = listed
        self._dim = dim
        self._settings = settings
        self._local = local
        self._opened: dict[str, Searchable] = {}
        self.dead = listed.dead

    @cached_property
    def table(self) -> RowTable:
        """What each row is."""
        return RowTable.open(self._local.path(*self._listed.files[ROWS_KIND], RowTable.judge))

    @cached_property
    def exact(self) -> ExactIndex:
        """The vectors."""
        path = self._local.path(*self._listed.files[EXACT], JUDGES[EXACT])
        return open_exact(path, rows=self._listed.rows, dim=self._dim, use_gpu=gpu_available())

    @cached_property
    def _distinct(self) -> Distinct:
        return Distinct(self.table.same_as)

    def index(self, kind: str) -> Searchable:
        """The index of that kind."""
        if kind == EXACT:
            return self.exact
        if kind not in self._opened:
            path = self._local.path(*self._listed.files[kind], JUDGES[kind])
            self._opened[kind] = open_approximate(path, kind, self.exact, self._distinct, self._settings)
        return self._opened[kind]

    def rows_of(self, volume_ids: AbstractSet[str]) -> NDArray[np.int64]:
        """The rows of these volumes in this shard."""
        slices = [self.table.rows_of(volume_id) for volume_id in sorted(volume_ids)]
        rows = [np.arange(rows.start, rows.stop, dtype=np.int64) for rows in slices]
        return np.concatenate(rows) if rows else np.empty(0, np.int64)

    def places_of(self, kept: CandidateFilter | None) -> NDArray[np.int64]:
        """The kept volumes of this shard, as places: their numbers in `table.volumes`."""
        ids, firsts = self.table.volumes
        places = np.arange(len(firsts)) if kept is None else np.flatnonzero(kept.of(ids))
        return np.setdiff1d(places, self._dead_places) if len(self._dead_places) else places

    def places_named(self, volume_ids: AbstractSet[str]) -> NDArray[np.int64]:
        """The places of those of the volumes that this shard has and the snapshot includes, ascending."""
        return self._places(volume_ids - self.dead)

    def _places(self, volume_ids: AbstractSet[str]) -> NDArray[np.int64]:
        slices = [self.table.rows_of(volume_id) for volume_id in sorted(volume_ids)]
        rows = np.array([rows.start for rows in slices if rows.stop > rows.start], np.int64)
        return np.searchsorted(self.table.volumes[1], np.sort(rows))

    @cached_property
    def _dead_places(self) -> NDArray[np.int64]:
        return self._places(self.dead)

    @cached_property
    def _dead_rows(self) -> NDArray[np.int64]:
        return self.rows_of(self.dead)

    def first_rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of the volumes at these places."""
        return self.table.volumes[1][places]

    def lengths(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
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

    def slices_at(self, places: NDArray[np.int64]) -> Slices:
        """All slices of the volumes at these places, with float64 vectors."""
        lengths = self.lengths(places)
        starts = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(self.first_rows(places) - starts, lengths)
        return Slices(self.exact.vectors(rows).astype(np.float64), self.table.plane_codes(rows), starts=starts)

    def excluded_rows(self, kept: CandidateFilter | None) -> NDArray[np.int64] | None:
        """The rows here that no query may find: those of volumes that are not kept or no longer in the snapshot."""
        if kept is None:
            return self._dead_rows if self.dead else None
        ids, firsts = self.table.volumes
        lengths = np.diff(firsts, append=len(self.table))
        rows = np.flatnonzero(np.repeat(~kept.of(ids), lengths))
        return np.union1d(rows, self._dead_rows) if self.dead else rows

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        kind: str,
        exclusions: Sequence[Exclusion],
        excluded: NDArray[np.int64] | None = None,
    ) -> Neighbours:
        """The k best rows for each query. exclusions: rows that some queries must not find. excluded: rows for none."""
        index = self.index(kind)
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


StoredRows = tuple[Shard, slice]  # where all vectors of a volume lie: consecutive rows of a shard


class ShardedIndex:
    """All shards over the volume vectors of one aggregation, or over the slice vectors, of one recipe."""

    def __init__(
        self,
        shards: Sequence[ShardFiles],
        dim: int,
        settings: IndexSettings,
        local: LocalFiles,
        centre: NDArray[np.float32] | None = None,
    ) -> None:
        self.dim = dim
        self._centre = centre
        self.rows = sum(shard.rows for shard in shards)
        kinds = [set(shard.files) - {ROWS_KIND} for shard in shards]
        self.kinds = tuple(
            kind for kind in settings.kinds if kinds and all(kind in files_of_shard for files_of_shard in kinds)
        )
        self.shards = [Shard(listed, dim, settings, local) for listed in shards]
        self._by_key = {listed.key: shard for listed, shard in zip(shards, self.shards, strict=True)}

    def centred(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, dim) unit vectors as the recipe gives them -> as this index holds them, float16 values."""
        if self._centre is None:
            return vectors
        return centred(vectors, self._centre).astype(np.float16).astype(np.float32)

    def uncentred(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, dim) vectors of this index -> as the recipe gave them."""
        return uncentred(vectors, self._centre)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        kind: str,
        excluded: Sequence[AbstractSet[str]] | None = None,
        kept: CandidateFilter | None = None,
    ) -> list[list[ScoredRow]]:
        """The k best vectors for each of (q, dim) unit queries, over all shards.

        excluded: for each query the volume_ids whose vectors it must not find. kept: the volumes that all may find.
        """
        groups: dict[frozenset[str], list[int]] = {}  # the slices of one volume, for example, exclude the same
        if excluded and any(excluded):
            for number, volume_ids in enumerate(excluded):
                groups.setdefault(frozenset(volume_ids), []).append(number)

        def search_shard(shard: Shard) -> Neighbours:
            exclusions = [Exclusion(np.array(numbers), shard.rows_of(ids)) for ids, numbers in groups.items()]
            return shard.search(queries, k, kind, exclusions, shard.excluded_rows(kept))

        # FAISS spreads queries over its threads; where there are fewer queries than threads, the shards are spread.
        at_once = threads() if len(queries) < threads() else 1
        by_shard = parallel_map(search_shard, self.shards, at_once)
        ranked: list[list[ScoredRow]] = [[] for _ in queries]
        if not by_shard:
            return ranked
        scores = np.concatenate([neighbours.scores for neighbours in by_shard], axis=1)
        rows = np.concatenate([neighbours.rows for neighbours in by_shard], axis=1)
        shards = np.repeat(np.arange(len(by_shard)), [neighbours.rows.shape[1] for neighbours in by_shard])
        best = np.nonzero((rows != MISSING) & (scores >= _least_of_best(scores, k)))
        tables = [shard.table for shard in self.shards]
        values = zip(
            best[0].tolist(), scores[best].tolist(), shards[best[1]].tolist(), rows[best].tolist(), strict=True
        )
        for query, score, number, row in values:
            ranked[query].append(ScoredRow(score, tables[number].volume_id(row), number, row))
        return [merge_shards(candidates, k) for candidates in ranked]

    def slices_of(self, volume_id: str) -> Slices | None:
        """The stored vectors of one volume, in the order of their rows; None when it has none here."""
        stored = self.stored(volume_id)
        return None if stored is None else stored[0].slices(stored[1])

    def stored(self, volume_id: str, key: str | None = None) -> StoredRows | None:
        """Where the vectors of one volume lie. key: of the shard to look in first."""
        first = self._by_key.get(key or "")
        for shard in self.shards if first is None else (first, *self.shards):
            rows = shard.table.rows_of(volume_id)
            if rows.stop > rows.start and volume_id not in shard.dead:
                return shard, rows  # all of them: shards are made of whole volumes
        return None

    def slice_at(self, scored: ScoredRow) -> Slices:
        """The one slice of a search result."""
        return self.shards[scored.shard].slices(slice(scored.row, scored.row + 1))


def _least_of_best(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(q, 1) the k-th best of each query's (q, m) scores, the worst where there are fewer."""
    at = max(0, scores.shape[1] - k)
    return np.partition(scores, at, axis=1)[:, at : at + 1]


@dataclass(frozen=True)
class ScoredRow:
    """A vector that a search returned. score: cosine. shard, row: where it lies in its index."""

    score: float
    volume_id: str
    shard: int
    row: int


def _rank(scored: ScoredRow) -> tuple[float, str, int, int]:
    return (-scored.score, scored.volume_id, scored.shard, scored.row)


def merge_shards(candidates: Iterable[ScoredRow], k: int) -> list[ScoredRow]:
    """The k best of all shards, best first; equal scores in the order of volume_id, then of shard and row."""
    return nsmallest(k, candidates, key=_rank)


def merge_slices(by_slice: Sequence[Iterable[ScoredRow]], k: int) -> list[tuple[ScoredRow, int]]:
    """The k best distinct vectors over all slices of the query, with the number of the slice that it is nearest to."""
    best: dict[tuple[int, int], tuple[ScoredRow, int]] = {}
    for number, candidates in enumerate(by_slice):
        for scored in candidates:
            best_so_far = best.get((scored.shard, scored.row))
            if best_so_far is None or scored.score > best_so_far[0].score:
                best[scored.shard, scored.row] = (scored, number)
    return nsmallest(k, best.values(), key=lambda pair: _rank(pair[0]))


def parallel_map(call: Callable[[T], R], arguments: Iterable[T], at_once: int) -> list[R]:
    """Call `call` for each argument, `at_once` at a time; returns the results in order, raises the first error."""
    items = list(arguments)
    at_once = min(at_once, len(items))
    if at_once < 2:
        return [call(item) for item in items]
    return list(_pool(os.getpid(), at_once).map(call, items))


@cache
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """A pool that is kept: starting threads takes as long as a search. A forked process needs its own."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, thread_name_prefix="medret-search")
