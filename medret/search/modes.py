"""The modes of a search: from the vectors of queries to ranked volumes.

    volume   the cosine of the volume vectors
    vote     each slice of the query finds its `per_slice` nearest slices; score: the volume's share of them
    max      the same, score: the best cosine among them
    sum      the same, score: the sum of their cosines, divided by the number of slices looked for
    late     candidates from both indices, then the late-interaction score (MaxSim) over all their slices (`late.py`)

The weights of a query's slices (Gaussian, for example) count in vote, sum and late. All scores are at most 1.

In vote, max and sum each slice of the query has one vote, split into `per_slice` equal places for its nearest slices.
If the places run out among equally near slices, those share the remaining places. If there are more of them than can be
looked for (empty slices, which are the same in every volume), none of them gets these places: they say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medret.index import EXACT
from medret.search.index_search import ScoredRow, Shard, ShardedIndex, merge_shards
from medret.search.kept import QueryGroup
from medret.search.late import SliceSets, late_scores, plane_codes
from medret.search.options import LATE, MAX, SUM, VOLUME, VOTE, SearchOptions
from medret.search.query import QueryVectors

# Slices looked for beyond `per_slice` when some are equally near: so many copies of a slice share its places.
COPIES_MAX = 64
EQUAL = 1e-6  # cosines of equal vectors differ by their rounding
SHARED_WASTE = 4  # volumes compared for each candidate, at most, when queries share one pass over their candidates
CHUNK_ROWS = 8192  # stored slices that are float64 at the same time
CHUNK_CELLS = 8 << 20  # cosines that are there at the same time


@dataclass(frozen=True)
class Indices:
    """What a search walks. volumes, slices: over volume and slice vectors; None where the mode does not need them."""

    kind: str
    volumes: ShardedIndex | None
    slices: ShardedIndex | None


def rank_volumes(
    asked: Sequence[QueryVectors], k: int, indices: Indices, scope: QueryGroup, options: SearchOptions
) -> list[list[ScoredRow]]:
    """At most k volumes for each query of a group, best first. asked: the group's queries."""
    mode = options.used_mode
    if not asked:
        return []
    if mode == VOLUME:
        return _by_volume(asked, k, indices, scope)
    if mode == LATE:
        return _by_late(asked, k, indices, scope, options)
    return [
        pooled(given, query.slice_weights(), k, mode, options.per_slice)
        for query, given in zip(asked, _voters(asked, options.per_slice, indices, scope), strict=True)
    ]


def slices_found(
    asked: Sequence[QueryVectors], k: int, indices: Indices, scope: QueryGroup
) -> list[list[list[ScoredRow]]]:
    """For each query and each of its slices the k nearest stored slices."""
    return _by_slices(asked, k, indices, scope)


def _by_volume(asked: Sequence[QueryVectors], k: int, indices: Indices, scope: QueryGroup) -> list[list[ScoredRow]]:
    assert indices.volumes is not None
    vectors = np.array([query.volume for query in asked], np.float32)
    return indices.volumes.search(vectors, k, indices.kind, scope.excluded, scope.kept)


def _by_slices(
    asked: Sequence[QueryVectors], k: int, indices: Indices, scope: QueryGroup
) -> list[list[list[ScoredRow]]]:
    assert indices.slices is not None
    vectors = np.concatenate([query.slices.vectors for query in asked])
    excluded = [own for query, own in zip(asked, scope.excluded, strict=True) for _ in range(len(query.slices))]
    found = iter(indices.slices.search(vectors, k, indices.kind, excluded, scope.kept))
    return [[next(found) for _ in range(len(query.slices))] for query in asked]


def _voters(
    asked: Sequence[QueryVectors], per_slice: int, indices: Indices, scope: QueryGroup
) -> list[list[list[tuple[float, ScoredRow]]]]:
    """For each query and each of its slices, which stored slices get its places, and which share of one."""
    found = _by_slices(asked, per_slice + 1, indices, scope)
    assert indices.slices is not None
    most = per_slice + COPIES_MAX
    again = [
        (query, own) for query, ours in enumerate(found) for own, one in enumerate(ours) if undecided(one, per_slice)
    ]
    if again:  # once more, with room for those that are equally near
        vectors = np.array([asked[query].slices.vectors[own] for query, own in again])
        excluded = [scope.excluded[query] for query, _ in again]
        wider = indices.slices.search(vectors, most, indices.kind, excluded, scope.kept)
        for (query, own), one in zip(again, wider, strict=True):
            found[query][own] = one
    given = [[places(one, per_slice, most) for one in own] for own in found]
    # A query that has nothing but such slices: those that were found stand for the others.
    return [
        ours if any(ours) else [[(per_slice / len(own), one) for one in own] for own in found[query]]
        for query, ours in enumerate(given)
    ]


# --- late ------------------------------------------------------------------------------------------------------


def _by_late(
    asked: Sequence[QueryVectors], k: int, indices: Indices, scope: QueryGroup, options: SearchOptions
) -> list[list[ScoredRow]]:
    """With the exact index every volume that may be found is compared; else each query's candidates."""
    slices = indices.slices
    assert slices is not None
    if indices.kind == EXACT:
        places = [shard.places_of(scope.kept) for shard in slices.shards]
        excluded = [[shard.places_named(own) for shard in slices.shards] for own in scope.excluded]
        return score_late(asked, k, slices, places, options, excluded)
    wanted = max(options.candidates, k)
    by_volume = _by_volume(asked, wanted, indices, scope)
    by_slice = _voters(asked, options.per_slice, indices, scope)
    named = []
    for query, first, second in zip(asked, by_volume, by_slice, strict=True):
        summed = pooled(second, query.slice_weights(), wanted, SUM, options.per_slice)
        named.append(_interleaved([one.volume_id for one in first], [one.volume_id for one in summed], wanted))
    every = frozenset[str]().union(*named)
    if len(every) * len(asked) <= SHARED_WASTE * sum(map(len, named)):  # one pass over what they have in common
        places = [shard.places_named(every) for shard in slices.shards]
        excluded = [[shard.places_named(every - own) for shard in slices.shards] for own in named]
        return score_late(asked, k, slices, places, options, excluded)
    ranked = []
    for query, own in zip(asked, named, strict=True):
        ranked += score_late([query], k, slices, [shard.places_named(own) for shard in slices.shards], options)
    return ranked


def _interleaved(first: Sequence[str], second: Sequence[str], count: int) -> frozenset[str]:
    """The best of both rankings, as many from each."""
    best: dict[str, int] = {}
    for ranking in (first, second):
        for rank, volume_id in enumerate(ranking):
            best[volume_id] = min(rank, best.get(volume_id, rank))
    return frozenset(sorted(best, key=lambda volume_id: (best[volume_id], volume_id))[:count])


def score_late(
    asked: Sequence[QueryVectors],
    k: int,
    slices: ShardedIndex,
    places: Sequence[NDArray[np.int64]],
    options: SearchOptions,
    excluded: Sequence[Sequence[NDArray[np.int64]]] = (),
) -> list[list[ScoredRow]]:
    """The k best of the volumes at `places` of each shard. excluded: for each query and shard, places to leave out."""
    found: list[list[ScoredRow]] = [[] for _ in asked]
    for number, (shard, chosen) in enumerate(zip(slices.shards, places, strict=True)):
        scores = _shard_scores(asked, shard, chosen, options)
        for query, own in enumerate(scores):
            if excluded:
                own[np.isin(chosen, excluded[query][number])] = -np.inf
            order = np.lexsort((chosen, -own))[:k]
            order = order[np.isfinite(own[order])]
            rows = shard.first_rows(chosen[order])
            ids = shard.table.volume_ids(rows)
            found[query] += map(ScoredRow, own[order].tolist(), ids, [number] * len(ids), rows.tolist())
    return [merge_shards(candidates, k) for candidates in found]


def _shard_scores(
    asked: Sequence[QueryVectors], shard: Shard, places: NDArray[np.int64], options: SearchOptions
) -> NDArray[np.float64]:
    """(queries, places), rounded to float32: equal volumes are equal wherever they lie."""
    scores = np.zeros((len(asked), len(places)))
    lengths = shard.lengths(places)
    for part in _bounded(lengths, CHUNK_ROWS):
        stored = shard.sets(places[part])
        cells = CHUNK_CELLS // len(stored.vectors)
        for queries in _bounded(np.array([len(query.slices) for query in asked]), cells):
            own = query_sets(asked[queries])
            scores[queries, part] = late_scores(own, stored, symmetric=options.symmetric, same_plane=options.same_plane)
    return scores.astype(np.float32).astype(np.float64)


def _bounded(lengths: NDArray[np.int64], most: int) -> Iterable[slice]:
    """Neighbours whose lengths sum to at most `most`, or single ones."""
    start = total = 0
    for number, length in enumerate(lengths.tolist()):
        if total and total + length > most:
            yield slice(start, number)
            start, total = number, 0
        total += length
    if len(lengths):
        yield slice(start, len(lengths))


def query_sets(asked: Sequence[QueryVectors]) -> SliceSets:
    """Queries as sets of slices."""
    lengths = np.array([len(query.slices) for query in asked])
    return SliceSets(
        np.concatenate([query.slices.vectors for query in asked]).astype(np.float64),
        np.concatenate([plane_codes(query.slices.planes) for query in asked]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)[:-1]]),
        np.concatenate([query.slice_weights() for query in asked]),
    )


def undecided(found: Sequence[ScoredRow], per_slice: int) -> bool:
    """Whether the places run out among equally near slices. found: per_slice + 1 of them, or all that there are."""
    return len(found) > per_slice and found[per_slice].score >= found[per_slice - 1].score - EQUAL


def places(found: Sequence[ScoredRow], per_slice: int, asked: int) -> list[tuple[float, ScoredRow]]:
    """The share of a place, in (0, 1], of each slice that gets one.

    found: the nearest slices, best first, `asked` of them or all that there are.
    """
    if not undecided(found, per_slice):
        return [(1.0, one) for one in found[:per_slice]]
    edge = found[per_slice - 1].score
    sure = [(1.0, one) for one in found if one.score > edge + EQUAL]
    equal = [one for one in found if abs(one.score - edge) <= EQUAL]
    if len(found) >= asked and found[-1].score >= edge - EQUAL:  # there are more of them than were asked for
        return sure
    share = (per_slice - len(sure)) / len(equal)
    return [*sure, *((share, one) for one in equal)]


def pooled(
    found: Sequence[Sequence[tuple[float, ScoredRow]]], weights: NDArray[np.float64], k: int, mode: str, per_slice: int
) -> list[ScoredRow]:
    """The k best volumes. found: for each slice of the query, who gets its places, and which share of one.

    weights: of the slices, summing to 1. Ties: by summed cosines, then by id.
    """
    hits: dict[str, list[tuple[float, ScoredRow]]] = {}
    for weight, own in zip(weights.tolist(), found, strict=True):
        for share, one in own:
            hits.setdefault(one.volume_id, []).append((weight * share, one))
    ranked = []
    for volume_id, own_hits in hits.items():
        shares = np.array([share for share, _ in own_hits])
        cosines = np.array([one.score for _, one in own_hits])
        best = max((one for _, one in own_hits), key=lambda one: one.score)
        summed = float(shares @ cosines) / per_slice
        score = {VOTE: float(shares.sum()) / per_slice, MAX: best.score, SUM: summed}[mode]
        # Rounded, so that equal votes are equal in whichever order they were added up.
        ranked.append((-round(score, 9), -round(summed, 9), volume_id, best))
    ranked.sort(key=lambda entry: entry[:3])
    return [ScoredRow(-entry[0], entry[2], entry[3].shard, entry[3].row) for entry in ranked[:k]]
