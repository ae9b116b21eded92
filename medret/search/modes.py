"""The modes of a search: from the vectors of queries to ranked volumes.

    volume   the cosine of the volume vectors
    vote     each slice of the query finds its `per_slice` nearest slices; score: the volume's share of them
    max      the same, score: the best cosine among them
    sum      the same, score: the sum of their cosines, divided by the number of slices searched for
    late     candidates from both indices, then the late-interaction score over all slices (`matching.late_scores`)

With `expand`, mode volume asks twice: the query is averaged with the volumes nearest to it, each weighted with its
cosine, and the mean asks again (query expansion: Chum et al., ICCV 2007, doi 10.1109/ICCV.2007.4408891). Its order is
that of the answer; the scores are still the cosines of the query itself, so they need not fall. The query's own volume
takes no part in the mean, nor do those that it must not find.

The weights of a query's slices (Gaussian, for example) count in vote, sum and late. All scores are at most 1.

In vote, max and sum each slice of the query has one vote, split into `per_slice` equal places for its nearest slices.
If the places run out among equally near slices, those share the remaining places. If there are more of them than a
search returns (empty slices, which are the same in every volume), none of them gets a place: they tell nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medret.index import EXACT
from medret.search.candidates import QueryGroup
from medret.search.index_search import ScoredRow, ShardedIndex
from medret.search.options import LATE, MAX, SUM, VOLUME, VOTE, SearchOptions
from medret.search.query import QueryVectors, Volume
from medret.search.shard import Shard

# Slices searched for beyond `per_slice` if some are equally near: at most this many copies of a slice share its places.
COPIES_MAX = 64
EQUAL = 1e-6  # cosines of equal vectors differ by their rounding
SHARED_WASTE = 4  # at most this many volumes are compared per candidate when queries share one pass


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
        return _by_volume(queries, k, indices, group, options.expand)
    if mode == LATE:
        return _by_late(queries, k, indices, group, options)
    return [
        pooled(voters, query.slice_weights(), k, mode, options.per_slice)
        for query, voters in zip(queries, _voters(queries, options.per_slice, indices, group), strict=True)
    ]


def _by_volume(
    queries: Sequence[QueryVectors], k: int, indices: Indices, group: QueryGroup, expand: int = 0
) -> list[list[ScoredRow]]:
    index = indices.volumes
    assert index is not None
    vectors = np.array([query.volume for query in queries], np.float32)
    if not expand:
        return index.search(vectors, k, indices.kind, group.excluded, group.kept)
    nearest = index.search(
        vectors, expand + max(len(query.volumes) for query in queries), indices.kind, group.excluded, group.kept
    )
    means = []
    for query, vector, found in zip(queries, vectors, nearest, strict=True):
        others = [scored for scored in found if scored.volume not in query.volumes][:expand]
        means.append(expanded(vector, others, np.array([index.slice_at(scored).vectors[0] for scored in others])))
    return index.rescored(
        vectors, index.search(np.array(means, np.float32), k, indices.kind, group.excluded, group.kept)
    )


def expanded(
    query: NDArray[np.float32], nearest: Sequence[ScoredRow], vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The (dim,) unit vector in the direction of a query plus its nearest vectors (n, dim), each times its cosine.

    A cosine below 0 counts as 0.
    """
    total = query.astype(np.float64)
    for scored, vector in zip(nearest, vectors, strict=True):
        total = total + max(scored.score, 0.0) * vector.astype(np.float64)
    found: NDArray[np.float32] = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
    return found


def slices_found(
    queries: Sequence[QueryVectors], k: int, indices: Indices, group: QueryGroup
) -> list[list[list[ScoredRow]]]:
    """For each query and each of its slices the k nearest stored slices."""
    assert indices.slices is not None
    vectors = np.concatenate([query.slices.vectors for query in queries])
    excluded = [
        volumes for query, volumes in zip(queries, group.excluded, strict=True) for _ in range(len(query.slices))
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
    asked = [query.slices for query in queries]
    if indices.kind == EXACT:
        excluded = group.excluded if any(group.excluded) else ()
        return slices.late(asked, k, lambda shard: shard.places_of(group.kept), options, excluded)
    depth = max(options.candidates, k)
    by_volume = _by_volume(queries, depth, indices, group)
    by_slice = _voters(queries, options.per_slice, indices, group)
    named = []
    for query, first, second in zip(queries, by_volume, by_slice, strict=True):
        summed = pooled(second, query.slice_weights(), depth, SUM, options.per_slice)
        named.append(_interleaved([scored.volume for scored in first], [scored.volume for scored in summed], depth))
    every = frozenset[Volume]().union(*named)
    if len(every) * len(queries) <= SHARED_WASTE * sum(map(len, named)):  # one pass over all candidates together
        others = [every - volumes for volumes in named] if len(named) > 1 else ()
        return slices.late(asked, k, lambda shard: shard.places_named(every), options, others)
    ranked = []
    for one, volumes in zip(asked, named, strict=True):
        ranked += slices.late([one], k, partial(Shard.places_named, volumes=volumes), options)
    return ranked


def _interleaved(first: Sequence[Volume], second: Sequence[Volume], count: int) -> frozenset[Volume]:
    """The best of both rankings, equally many from each."""
    best: dict[Volume, int] = {}
    for ranking in (first, second):
        for rank, volume in enumerate(ranking):
            best[volume] = min(rank, best.get(volume, rank))
    return frozenset(sorted(best, key=lambda volume: (best[volume], volume))[:count])


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
    by_volume: dict[Volume, list[tuple[float, ScoredRow]]] = {}
    for weight, voters in zip(weights.tolist(), by_slice, strict=True):
        for share, scored in voters:
            by_volume.setdefault(scored.volume, []).append((weight * share, scored))
    ranked = []
    for volume, votes in by_volume.items():
        shares = np.array([share for share, _ in votes])
        cosines = np.array([scored.score for _, scored in votes])
        best = max((scored for _, scored in votes), key=lambda scored: scored.score)
        summed = float(shares @ cosines) / per_slice
        score = {VOTE: float(shares.sum()) / per_slice, MAX: best.score, SUM: summed}[mode]
        # Rounded, so that equal votes stay equal in whatever order they were added.
        ranked.append((-round(score, 9), -round(summed, 9), volume, best))
    ranked.sort(key=lambda entry: entry[:3])
    return [replace(best, score=-score) for score, _, _, best in ranked[:k]]
