"""From queries to hits: resolve, rank under each member of the ensemble, fuse, then labels and matching slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.index import EXACT
from medret.search.candidates import QueryGroup
from medret.search.corpus import Corpus, Member
from medret.search.hit import Hit, SliceMatch, SlicePair
from medret.search.index_search import ScoredRow, StoredRows, merge_slices
from medret.search.ledger import LedgerRow
from medret.search.matching import match_of, match_slices, nearest_of_each
from medret.search.modes import slices_found
from medret.search.options import CONCAT, LATE, RRF, SLICE, VOLUME, SearchOptions, check_count
from medret.search.query import AXES, Query, QueryVectors, Volume
from medret.search.resolve import Resolver

# Cormack, Clarke and Buettcher 2009: keeps a first place from outweighing agreement further down.
RRF_CONSTANT = 60


def answer(
    corpus: Corpus, resolver: Resolver, queries: Sequence[Query], k: int, options: SearchOptions
) -> list[list[Hit]]:
    """The hits of each query; see `Snapshot.search_many`."""
    check_count("k", k, "hits")
    members = corpus.members(options)
    for member in members:
        corpus.indices(member, options)  # raises UsageError before a model is loaded
    if not queries:
        return []
    by_member = [[resolver.resolve(query, member, options) for query in queries] for member in members]
    resolved = by_member[0]
    groups = corpus.query_groups(corpus.excluded(resolved, options.exclude), options.where)
    if options.used_mode == SLICE:
        if len(members) > 1:
            raise UsageError(f"mode '{SLICE}' takes one model: the slices of several are not fused")
        return _slice_hits(corpus, members[0], resolved, k, groups, options)
    if len(members) > 1:
        ranked = rank_ensemble(corpus, members, by_member, k, groups, options)
    else:
        ranked = corpus.rank(members[0], resolved, k, groups, options)
    rows = corpus.rows(scored.volume for ranking in ranked for scored in ranking)
    hits = []
    for query, ranking in zip(resolved, ranked, strict=True):
        found = [scored.volume for scored in ranking]
        stored = corpus.stored(members[0].entry, None, [(volume, rows[volume]) for volume in found])
        if query.slices.slice_indices is None:
            matches = _match_vector(query.slices.vectors[0], stored)
        else:
            matches = [_match(corpus, query, volume, at) for volume, at in zip(found, stored, strict=True)]
        hits.append(_hits(corpus, members[0], query, rows, ranking, matches))
    return hits


# --- several models or aggregations ------------------------------------------------------------------------------


def rank_ensemble(
    corpus: Corpus,
    members: Sequence[Member],
    by_member: Sequence[Sequence[QueryVectors]],
    k: int,
    groups: Sequence[QueryGroup],
    options: SearchOptions,
) -> list[list[ScoredRow]]:
    """At most k volumes per query. by_member: for each member the queries as its vectors.

    Each member names candidates. `rrf` fuses their ranks; `concat` scores each candidate exactly under every member.
    With the exact index all volumes are candidates, so the result is exact too.
    """
    if options.fuse == CONCAT and options.used_mode not in (VOLUME, LATE):
        raise UsageError(
            f"fuse '{CONCAT}' adds up cosines, which mode '{options.used_mode}' has none of: take fuse '{RRF}'"
        )
    depth = max(corpus.volumes if options.index == EXACT else 0, options.candidates, k)
    weights = [member.weight for member in members]
    rankings = [
        corpus.rank(member, queries, depth, groups, options) for member, queries in zip(members, by_member, strict=True)
    ]
    ranked = []
    for number in range(len(by_member[0])):
        candidates = [ranking[number] for ranking in rankings]
        if options.fuse == RRF:
            fused = reciprocal_rank([[scored.volume for scored in ranking] for ranking in candidates], weights)
        else:
            named = frozenset(scored.volume for ranking in candidates for scored in ranking)
            scores = [
                _exact_scores(corpus, member, queries[number], ranking, named, options)
                for member, queries, ranking in zip(members, by_member, candidates, strict=True)
            ]
            fused = weighted_sum(scores, weights)
        ranked.append([ScoredRow(score, volume_id, -1, -1, store) for (volume_id, store), score in fused[:k]])
    return ranked


def _exact_scores(
    corpus: Corpus,
    member: Member,
    query: QueryVectors,
    ranking: Sequence[ScoredRow],
    named: AbstractSet[Volume],
    options: SearchOptions,
) -> dict[Volume, float]:
    """The scores of the named volumes under one member; those in its own ranking are known."""
    scores = {scored.volume: scored.score for scored in ranking}
    others = named - scores.keys()
    if not others:
        return scores
    if options.used_mode == LATE:
        (ranked,) = corpus.index(member.entry, None).late(
            [query.slices],
            len(others),
            lambda shard: shard.places_named(others),
            options,
        )
        return scores | {scored.volume: scored.score for scored in ranked}
    volumes = corpus.index(member.entry, member.aggregation)
    for volume in others:
        stored = volumes.slices_of(volume)
        if stored is not None:
            product = stored.vectors[0].astype(np.float64) @ query.volume.astype(np.float64)
            scores[volume] = float(np.float32(product))
    return scores


def reciprocal_rank(
    rankings: Sequence[Sequence[Volume]], weights: Sequence[float], constant: int = RRF_CONSTANT
) -> list[tuple[Volume, float]]:
    """Volumes with the weighted sum of 1 / (constant + rank), ranks from 1, best first; ties in the order of the ids.

    Divided by the largest possible sum, so that a volume that all rankings put first scores 1.
    """
    scores: dict[Volume, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, volume in enumerate(ranking, start=1):
            scores[volume] = scores.get(volume, 0.0) + weight / (constant + rank)
    best = sum(weights) / (constant + 1)
    return _best_first({volume: score / best for volume, score in scores.items()})


def weighted_sum(scores: Sequence[Mapping[Volume, float]], weights: Sequence[float]) -> list[tuple[Volume, float]]:
    """Volumes with the weighted mean of their scores, best first; ties in the order of the ids.

    For cosines this is the cosine of the concatenation of the members' unit vectors, each times the root of its weight.
    A volume that a member does not know scores 0 there.
    """
    total = sum(weights)
    fused: dict[Volume, float] = {}
    for member_scores, weight in zip(scores, weights, strict=True):
        for volume, score in member_scores.items():
            fused[volume] = fused.get(volume, 0.0) + weight * score / total
    return _best_first(fused)


def _best_first(scores: Mapping[Volume, float]) -> list[tuple[Volume, float]]:
    return sorted(((volume, round(score, 9)) for volume, score in scores.items()), key=lambda pair: (-pair[1], pair[0]))


# --- hits --------------------------------------------------------------------------------------------------------


def _hits(
    corpus: Corpus,
    member: Member,
    query: QueryVectors,
    rows: Mapping[Volume, LedgerRow],
    ranking: Sequence[ScoredRow],
    matches: Sequence[SliceMatch | None],
) -> list[Hit]:
    hits = []
    for rank, (scored, match) in enumerate(zip(ranking, matches, strict=True), start=1):
        row, store = rows[scored.volume], corpus.stores[scored.store]
        score = min(scored.score, 1.0)  # float16 lengths may exceed 1 by a little
        if match:
            match = match.with_sources(query.sources, store.sources(member.entry, row))
        hits.append(Hit(rank, scored.volume_id, row.uri, score, row.labels, match, store.uri))
    return hits


def _match_vector(vector: NDArray[np.float32], stored: Sequence[StoredRows | None]) -> list[SliceMatch | None]:
    """For a query that is one volume vector, the most similar slice of each hit: as `match_slices` finds it."""
    nearest = iter(nearest_of_each(vector, [rows[0].exact.codes(rows[1]) for rows in stored if rows is not None]))
    matches: list[SliceMatch | None] = []
    for rows in stored:
        if rows is None:
            matches.append(None)
            continue
        (shard, at), (number, score) = rows, next(nearest)
        plane, position = shard.table.slice_at(at.start + number)
        pair = SlicePair(plane, None, position, score)
        matches.append(SliceMatch(plane, None, (position, position), score, (pair,)))
    return matches


def _match(corpus: Corpus, query: QueryVectors, volume: Volume, stored: StoredRows | None) -> SliceMatch | None:
    if stored is None:
        return None
    volume_id, store = volume
    hit_spacing_mm = corpus.stores[store].ledger.spacing_mm(volume_id) if query.spacing_mm else None
    paces = None
    if query.spacing_mm and hit_spacing_mm:
        spacings = zip(AXES, query.spacing_mm, hit_spacing_mm, strict=True)
        paces = {plane: query_mm / hit_mm for plane, query_mm, hit_mm in spacings}
    shard, at = stored
    return match_slices(query.slices, shard.slices(at), query.requested, paces)


def _slice_hits(
    corpus: Corpus,
    member: Member,
    queries: Sequence[QueryVectors],
    k: int,
    groups: Iterable[QueryGroup],
    options: SearchOptions,
) -> list[list[Hit]]:
    """The hits of mode `slice`, each of which is one slice."""
    indices = corpus.indices(member, options)
    assert indices.slices is not None
    hits: list[list[Hit]] = [[] for _ in queries]
    for group in groups:
        members = [queries[number] for number in group.queries]
        by_query = slices_found(members, k, indices, group)
        for number, query, by_slice in zip(group.queries, members, by_query, strict=True):
            best = merge_slices(by_slice, k)
            matches = [
                match_of(query.slices, query_slice, indices.slices.slice_at(scored), 0, scored.score)
                for scored, query_slice in best
            ]
            ranking = [scored for scored, _ in best]
            rows = corpus.rows(scored.volume for scored in ranking)
            hits[number] = _hits(corpus, member, query, rows, ranking, matches)
    return hits
