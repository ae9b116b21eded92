"""One index over all its shards, of one store or of several: asks each shard and merges what they find.

A shard is asked for its own best; the best of all are among them, whoever holds the shards. So they may lie in other
processes: see `Task`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from medret.embeddings import Slices
from medret.index import KINDS, MISSING, Neighbours, centred, threads, uncentred
from medret.search.candidates import CandidateFilter
from medret.search.options import SearchOptions
from medret.search.query import Volume
from medret.search.shard import Exclusion, Shard

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
R = TypeVar("R")

IndexKey = tuple[str, str | None]  # recipe digest, aggregation (None: slice vectors)
StoredRows = tuple[Shard, slice]  # where all vectors of a volume lie: consecutive rows of a shard


@dataclass(frozen=True)
class Task:
    """One question to one index shard, which `Snapshot.run` answers in any process that has opened the same snapshots.

    snapshots: their ids, in order. shard: its number in the index, the same in every process.
    """

    snapshots: tuple[str, ...]
    index: IndexKey
    shard: int
    method: Literal["search", "late"]
    arguments: tuple[Any, ...]


Spread = Callable[[Sequence[Task]], Sequence[Any]]  # tasks -> the answers of `Snapshot.run`, in the same order


class ShardedIndex:
    """All shards over the volume vectors of one aggregation, or over the slice vectors, of one recipe.

    centre: of all shards. spread: runs the tasks for the shards elsewhere; None: they are searched in this process.
    """

    def __init__(
        self,
        key: IndexKey,
        shards: Sequence[Shard],
        centre: NDArray[np.float32] | None = None,
        snapshots: tuple[str, ...] = (),
        spread: Spread | None = None,
    ) -> None:
        self._key, self.centre, self._snapshots, self._spread = key, centre, snapshots, spread
        self.shards = list(shards)
        self.rows = sum(shard.rows for shard in shards)
        self.kinds = tuple(kind for kind in KINDS if shards and all(kind in shard.kinds for shard in shards))
        self._by_key = {(shard.store, shard.key): shard for shard in shards}

    def centred(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, dim) unit vectors as the recipe gives them -> as this index holds them, float16 values."""
        if self.centre is None:
            return vectors
        return centred(vectors, self.centre).astype(np.float16).astype(np.float32)

    def uncentred(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, dim) vectors of this index -> as the recipe gave them."""
        return uncentred(vectors, self.centre)

    def _ask(
        self, method: Literal["search", "late"], arguments: Callable[[Shard], tuple[Any, ...]], at_once: int
    ) -> Sequence[Any]:
        """Call a method of every shard. at_once: how many of them at a time, in this process."""
        if self._spread is None:
            return parallel_map(lambda shard: getattr(shard, method)(*arguments(shard)), self.shards, at_once)
        asked = [(number, arguments(shard)) for number, shard in enumerate(self.shards)]
        return self._spread([Task(self._snapshots, self._key, number, method, each) for number, each in asked])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        kind: str,
        excluded: Sequence[AbstractSet[Volume]] | None = None,
        kept: Sequence[CandidateFilter] | None = None,
    ) -> list[list[ScoredRow]]:
        """The k best vectors for each of (q, dim) unit queries, over all shards.

        excluded: for each query the volumes whose vectors it must not find. kept: per store, the volumes that all may
        find.
        """
        groups: dict[frozenset[Volume], list[int]] = {}  # the slices of one volume, for example, exclude the same
        if excluded and any(excluded):
            for number, volumes in enumerate(excluded):
                groups.setdefault(frozenset(volumes), []).append(number)

        def arguments(shard: Shard) -> tuple[Any, ...]:
            exclusions = [Exclusion(np.array(numbers), shard.rows_of(volumes)) for volumes, numbers in groups.items()]
            return queries, k, kind, exclusions, shard.excluded_rows(kept)

        # FAISS spreads queries over its threads; where there are fewer queries than threads, the shards are spread.
        by_shard: Sequence[Neighbours] = self._ask("search", arguments, threads() if len(queries) < threads() else 1)
        ranked: list[list[ScoredRow]] = [[] for _ in queries]
        if not by_shard:
            return ranked
        scores = np.concatenate([neighbours.scores for neighbours in by_shard], axis=1)
        rows = np.concatenate([neighbours.rows for neighbours in by_shard], axis=1)
        shards = np.repeat(np.arange(len(by_shard)), [neighbours.rows.shape[1] for neighbours in by_shard])
        best = np.nonzero((rows != MISSING) & (scores >= _least_of_best(scores, k)))
        tables = [(shard.table, shard.store) for shard in self.shards]
        values = zip(
            best[0].tolist(), scores[best].tolist(), shards[best[1]].tolist(), rows[best].tolist(), strict=True
        )
        for query, score, number, row in values:
            table, store = tables[number]
            ranked[query].append(ScoredRow(score, table.volume_id(row), number, row, store))
        return [merge_shards(candidates, k) for candidates in ranked]

    def late(
        self,
        queries: Sequence[Slices],
        k: int,
        places: Callable[[Shard], NDArray[np.int64]],
        options: SearchOptions,
        excluded: Sequence[AbstractSet[Volume]] = (),
    ) -> list[list[ScoredRow]]:
        """The k volumes per query with the best late-interaction scores.

        queries: the slices of each. places: of the volumes to score in a shard. excluded: for each query the volumes
        that it must not find.
        """
        wide = [replace(slices, vectors=slices.vectors.astype(np.float64)) for slices in queries]
        chosen = [places(shard) for shard in self.shards]
        compared, remaining = (options.symmetric, options.same_plane), iter(chosen)
        by_shard: Sequence[NDArray[np.float64]] = self._ask("late", lambda _: (wide, next(remaining), *compared), 1)
        ranked: list[list[ScoredRow]] = [[] for _ in queries]
        for number, (shard, scores) in enumerate(zip(self.shards, by_shard, strict=True)):
            for query, scores_of_query in enumerate(scores):
                if excluded:
                    hidden = shard.places_named(excluded[query])
                    scores_of_query = np.where(np.isin(chosen[number], hidden), -np.inf, scores_of_query)
                order = np.lexsort((chosen[number], -scores_of_query))[:k]
                order = order[np.isfinite(scores_of_query[order])]
                rows = shard.first_rows(chosen[number][order])
                found = zip(scores_of_query[order].tolist(), shard.table.volume_ids(rows), rows.tolist(), strict=True)
                ranked[query] += [ScoredRow(score, name, number, row, shard.store) for score, name, row in found]
        return [merge_shards(candidates, k) for candidates in ranked]

    def slices_of(self, volume: Volume) -> Slices | None:
        """The stored vectors of one volume, in the order of their rows; None when it has none here."""
        stored = self.stored(volume)
        return None if stored is None else stored[0].slices(stored[1])

    def stored(self, volume: Volume, key: str | None = None) -> StoredRows | None:
        """Where the vectors of one volume lie. key: of the shard to look in first."""
        volume_id, store = volume
        first = self._by_key.get((store, key or ""))
        for shard in self.shards if first is None else (first, *self.shards):
            if shard.store == store and (rows := shard.rows_found(volume_id)):
                return shard, rows  # all of them: shards are made of whole volumes
        return None

    def rescored(self, queries: NDArray[np.float32], ranked: Sequence[Sequence[ScoredRow]]) -> list[list[ScoredRow]]:
        """The same results in the same order, with the cosines of other (q, dim) queries."""
        rescored = []
        for query, found in zip(queries, ranked, strict=True):
            scores = np.empty(len(found), np.float32)
            shards = np.array([scored.shard for scored in found], np.int64)
            rows = np.array([scored.row for scored in found], np.int64)
            for number in np.unique(shards).tolist():
                own = shards == number
                scores[own] = self.shards[number].exact.scores(query[None], rows[own][None])[0]
            rescored.append([replace(one, score=score) for one, score in zip(found, scores.tolist(), strict=True)])
        return rescored

    def slice_at(self, scored: ScoredRow) -> Slices:
        """The one slice of a search result."""
        return self.shards[scored.shard].slices(slice(scored.row, scored.row + 1))


def _least_of_best(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(q, 1) the k-th best of each query's (q, m) scores, the worst where there are fewer."""
    at = max(0, scores.shape[1] - k)
    return np.partition(scores, at, axis=1)[:, at : at + 1]


@dataclass(frozen=True)
class ScoredRow:
    """A vector that a search returned. score: cosine. shard, row: where it lies in its index. store: of its volume."""

    score: float
    volume_id: str
    shard: int
    row: int
    store: int = 0

    @property
    def volume(self) -> Volume:
        """The volume that it belongs to."""
        return self.volume_id, self.store


def _rank(scored: ScoredRow) -> tuple[float, str, int, int]:
    return (-scored.score, scored.volume_id, scored.shard, scored.row)


def merge_shards(candidates: Iterable[ScoredRow], k: int) -> list[ScoredRow]:
    """The k best of all shards, best first; equal scores in the order of volume_id, then of store, shard and row."""
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
