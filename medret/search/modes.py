"""The modes of a search: from the vectors of queries to ranked volumes.

    volume   the cosine of the volume vectors
    vote     each slice of the query finds its `per_slice` nearest slices; score: the volume's share of them
    max      the same, score: the best cosine among them
    sum      the same, score: the sum of their cosines, divided by the number of slices searched for
    late     candidates from both indices, then the late-interaction score (MaxSim) over all their slices (`late.py`)

The weights of a query's slices (Gaussian, for example) count in vote, sum and late. All scores are at most 1.

In vote, max and sum each slice of the query has one vote, split into `per_slice` equal places for its nearest slices.
If the places run out among equally near slices, those share the remaining places. If there are more of them than a
search returns (empty slices, which are the same in every volume), none of them gets a place: they tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medret.embeddings.slices import Slices, joined
from medret.index import EXACT
from medret.search.candidates import QueryGroup
from medret.search.index_search import ScoredRow, Shard, ShardedIndex, merge_shards
from medret.search.late import late_scores
from medret.search.options import LATE, MAX, SUM, VOLUME, VOTE, SearchOptions
from medret.search.query import QueryVectors

# Slices searched for beyond `per_slice` if some are equally near: at most this many copies of a slice share its places.
COPIES_MAX = 64
EQUAL = 1e-6  # cosines of equal vectors differ by their rounding
SHARED_WASTE = 4  # at most this many volumes are compared per candidate when queries share one pass
CHUNK_ROWS = 8192  # stored slices in memory as float64 at the same time
CHUNK_CELLS = 8 << 20  # cosines in memory at the same time


@dataclass(frozen=True)
class Indices:
    """The indices of a search. volumes, slices: over volume and slice vectors; None where the mode needs none."""

    kind: str
    volumes: ShardedIndex | None
    slices: ShardedIndex | None


def rank_volumes(
    queries: Sequence[QueryVectors], k: int, indices: Indices, group: QueryGroup, options: SearchOptions
) -> list[list[ScoredRow]]:
    """At most k volumes for each query of a group, best first. queries: those of the group."""
    mode = options.used_mode
    if not queries:
        return []
    if mode == VOLUME:
        return _by_volume(queries, k, indices, group)
    if mode == LATE:
        return _by_late(queries, k, indices, group, options)
    return [
        pooled(voters, query.slice_weights(), k, mode, options.per_slice)
        for query, voters in zip(queries, _voters(queries, options.per_slice, indices, group), strict=True)
    ]


def _by_volume(queries: Sequence[QueryVectors], k: int, indices: Indices, group: QueryGroup) -> list[list[ScoredRow]]:
    assert indices.volumes is not None
    vectors = np.array([query.volume for query in queries], np.float32)
    return indices.volumes.search(vectors, k, indices.kind, group.excluded, group.kept)


def slices_found(
    queries: Sequence[QueryVectors], k: int, indices: Indices, group: QueryGroup
) -> list[list[list[ScoredRow]]]:
    """For each query and each of its slices the k nearest stored slices."""
    assert indices.slices is not None
    vectors = np.concatenate([query.slices.vectors for query in queries])
    excluded = [
        volume_ids for query, volume_ids in zip(queries, group.excluded, strict=True) for _ in range(len(query.slices))
    ]
    nearest = iter(indices.slices.search(vectors, k, indices.kind, excluded, group.kept))
    return [[next(nearest) for _ in range(len(query.slices))] for query in queries]


def _voters(
    queries: Sequence[QueryVectors], per_slice: int, indices: Indices, group: QueryGroup
) -> list[list[list[tuple[float, ScoredRow]]]]:
    """For each query and each of its slices: the stored slices that get its places, each with its share of a place."""
    by_query = slices_found(queries, per_slice + 1, indices, group)
    assert indices.slices is not None
    most = per_slice + COPIES_MAX
    again = [
        (query, query_slice)
        for query, by_slice in enumerate(by_query)
        for query_slice, nearest in enumerate(by_slice)
        if undecided(nearest, per_slice)
    ]
    if again:  # search again, with room for all equally near slices
        vectors = np.array([queries[query].slices.vectors[query_slice] for query, query_slice in again])
        excluded = [group.excluded[query] for query, _ in again]
        wider = indices.slices.search(vectors, most, indices.kind, excluded, group.kept)
        for (query, query_slice), nearest in zip(again, wider, strict=True):
            by_query[query][query_slice] = nearest
    voters = []
    for by_slice in by_query:
        shares = [places(nearest, per_slice, most) for nearest in by_slice]
        if not any(shares):  # a query without any place: the slices that were found share them all
            shares = [[(per_slice / len(nearest), scored) for scored in nearest] for nearest in by_slice]
        voters.append(shares)
    return voters


# --- late ------------------------------------------------------------------------------------------------------


def _by_late(
    queries: Sequence[QueryVectors], k: int, indices: Indices, group: QueryGroup, options: SearchOptions
) -> list[list[ScoredRow]]:
    """Score all kept volumes if the index is exact, else the candidates of each query."""
    slices = indices.slices
    assert slices is not None
    if indices.kind == EXACT:
        places = [shard.places_of(group.kept) for shard in slices.shards]
        excluded = [[shard.places_named(volume_ids) for shard in slices.shards] for volume_ids in group.excluded]
        return score_late(queries, k, slices, places, options, excluded)
    depth = max(options.candidates, k)
    by_volume = _by_volume(queries, depth, indices, group)
    by_slice = _voters(queries, options.per_slice, indices, group)
    named = []
    for query, first, second in zip(queries, by_volume, by_slice, strict=True):
        summed = pooled(second, query.slice_weights(), depth, SUM, options.per_slice)
        named.append(
            _interleaved([scored.volume_id for scored in first], [scored.volume_id for scored in summed], depth)
        )
    every = frozenset[str]().union(*named)
    if len(every) * len(queries) <= SHARED_WASTE * sum(map(len, named)):  # one pass over all candidates together
        places = [shard.places_named(every) for shard in slices.shards]
        excluded = [[shard.places_named(every - volume_ids) for shard in slices.shards] for volume_ids in named]
        return score_late(queries, k, slices, places, options, excluded)
    ranked = []
    for query, volume_ids in zip(queries, named, strict=True):
        ranked += score_late([query], k, slices, [shard.places_named(volume_ids) for shard in slices.shards], options)
    return ranked


def _interleaved(first: Sequence[str], second: Sequence[str], count: int) -> frozenset[str]:
    """The best of both rankings, equally many from each."""
    best: dict[str, int] = {}
    for ranking in (first, second):
        for rank, volume_id in enumerate(ranking):
            best[volume_id] = min(rank, best.get(volume_id, rank))
    return frozenset(sorted(best, key=lambda volume_id: (best[volume_id], volume_id))[:count])


def score_late(
    queries: Sequence[QueryVectors],
    k: int,
    slices: ShardedIndex,
    places: Sequence[NDArray[np.int64]],
    options: SearchOptions,
    excluded: Sequence[Sequence[NDArray[np.int64]]] = (),
) -> list[list[ScoredRow]]:
    """Score the volumes at `places` of each shard: the k best per query. excluded: places, per query and shard."""
    ranked: list[list[ScoredRow]] = [[] for _ in queries]
    for number, (shard, chosen) in enumerate(zip(slices.shards, places, strict=True)):
        scores = _shard_scores(queries, shard, chosen, options)
        for query, scores_of_query in enumerate(scores):
            if excluded:
                scores_of_query[np.isin(chosen, excluded[query][number])] = -np.inf
            order = np.lexsort((chosen, -scores_of_query))[:k]
            order = order[np.isfinite(scores_of_query[order])]
            rows = shard.first_rows(chosen[order])
            ids = shard.table.volume_ids(rows)
            ranked[query] += map(ScoredRow, scores_of_query[order].tolist(), ids, [number] * len(ids), rows.tolist())
    return [merge_shards(candidates, k) for candidates in ranked]


def _shard_scores(
    queries: Sequence[QueryVectors], shard: Shard, places: NDArray[np.int64], options: SearchOptions
) -> NDArray[np.float64]:
    """(queries, places) scores, rounded to float32 so that equal volumes get equal scores in every shard."""
    scores = np.zeros((len(queries), len(places)))
    lengths = shard.lengths(places)
    for part in _bounded(lengths, CHUNK_ROWS):
        stored = shard.slices_at(places[part])
        cells = CHUNK_CELLS // len(stored)
        for part_queries in _bounded(np.array([len(query.slices) for query in queries]), cells):
            sets = query_sets(queries[part_queries])
            scores[part_queries, part] = late_scores(
                sets, stored, symmetric=options.symmetric, same_plane=options.same_plane
            )
    return scores.astype(np.float32).astype(np.float64)


def _bounded(lengths: NDArray[np.int64], most: int) -> Iterable[slice]:
    """Slices of consecutive items whose lengths sum to at most `most`, or of a single longer item."""
    start = total = 0
    for number, length in enumerate(lengths.tolist()):
        if total and total + length > most:
            yield slice(start, number)
            start, total = number, 0
        total += length
    if len(lengths):
        yield slice(start, len(lengths))


def query_sets(queries: Sequence[QueryVectors]) -> Slices:
    """The slices of several queries."""
    slices = joined([query.slices for query in queries])
    return replace(slices, vectors=slices.vectors.astype(np.float64))


def undecided(nearest: Sequence[ScoredRow], per_slice: int) -> bool:
    """Whether the places run out among equally near slices. nearest: the nearest per_slice + 1, or all."""
    return len(nearest) > per_slice and nearest[per_slice].score >= nearest[per_slice - 1].score - EQUAL


def places(nearest: Sequence[ScoredRow], per_slice: int, depth: int) -> list[tuple[float, ScoredRow]]:
    """The share of a place, in (0, 1], of each slice that gets one.

    nearest: the `depth` nearest slices, best first; fewer if the index has no more.
    """
    if not undecided(nearest, per_slice):
        return [(1.0, scored) for scored in nearest[:per_slice]]
    edge = nearest[per_slice - 1].score
    sure = [(1.0, scored) for scored in nearest if scored.score > edge + EQUAL]
    equal = [scored for scored in nearest if abs(scored.score - edge) <= EQUAL]
    if len(nearest) >= depth and nearest[-1].score >= edge - EQUAL:  # there may be more of them than were searched
        return sure
    share = (per_slice - len(sure)) / len(equal)
    return [*sure, *((share, scored) for scored in equal)]


def pooled(
    by_slice: Sequence[Sequence[tuple[float, ScoredRow]]],
    weights: NDArray[np.float64],
    k: int,
    mode: str,
    per_slice: int,
) -> list[ScoredRow]:
    """The k best volumes; ties by summed cosines, then by id.

    by_slice: for each slice of the query, the stored slices that get its places, each with its share of a place.
    weights: of the query's slices, summing to 1.
    """
    by_volume: dict[str, list[tuple[float, ScoredRow]]] = {}
    for weight, voters in zip(weights.tolist(), by_slice, strict=True):
        for share, scored in voters:
            by_volume.setdefault(scored.volume_id, []).append((weight * share, scored))
    ranked = []
    for volume_id, votes in by_volume.items():
        shares = np.array([share for share, _ in votes])
        cosines = np.array([scored.score for _, scored in votes])
        best = max((scored for _, scored in votes), key=lambda scored: scored.score)
        summed = float(shares @ cosines) / per_slice
        score = {VOTE: float(shares.sum()) / per_slice, MAX: best.score, SUM: summed}[mode]
        # Rounded, so that equal votes stay equal in whatever order they were added.
        ranked.append((-round(score, 9), -round(summed, 9), volume_id, best))
    ranked.sort(key=lambda entry: entry[:3])
    return [ScoredRow(-entry[0], entry[2], entry[3].shard, entry[3].row) for entry in ranked[:k]]
