"""Searching with several models or aggregations at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medret.errors import UsageError
from medret.index import EXACT
from medret.search.contents import Contents
from medret.search.fusion import reciprocal_rank, weighted_sum
from medret.search.merge import ScoredRow
from medret.search.modes import LATE, VOLUME, ModeOptions, score_late
from medret.search.options import Weighted
from medret.search.query import QueryVectors

if TYPE_CHECKING:
    from medret.search.snapshot import Snapshot

CONCAT, RRF = "concat", "rrf"
FUSIONS = (CONCAT, RRF)


@dataclass(frozen=True)
class Member:
    """One member of an ensemble. weight: above 0, relative to the others'."""

    model: str
    aggregation: str
    weight: float = 1.0


def members_of(contents: Contents, model: Weighted | None, aggregation: Weighted | None) -> list[Member]:
    """Every model with every aggregation that is asked for; raises UsageError for names and weights that cannot be."""
    models = {contents.model(name): weight for name, weight in _weights("model", model)}
    aggregations = {contents.aggregation(name): weight for name, weight in _weights("aggregation", aggregation)}
    return [Member(m, a, own * other) for m, own in models.items() for a, other in aggregations.items()]


def _weights(what: str, given: Weighted | None) -> list[tuple[str | None, float]]:
    if given is None or isinstance(given, str):
        return [(given, 1.0)]
    pairs = list(given.items()) if isinstance(given, Mapping) else [(name, 1.0) for name in given]
    if not pairs:
        raise UsageError(f"no {what} is given; leave it out for the snapshot's first")
    for name, weight in pairs:
        if not (math.isfinite(weight) and weight > 0):
            raise UsageError(f"weight of {what} '{name}' is {weight!r}, expected a number above 0")
    return [(name, float(weight)) for name, weight in pairs]


def rank_ensemble(
    snapshot: Snapshot,
    contents: Contents,
    members: Sequence[Member],
    asked: Sequence[Sequence[QueryVectors]],
    k: int,
    *,
    fuse: str,
    index: str,
    mode: str,
    excluded: Sequence[AbstractSet[str]],
    where: str | None,
    options: ModeOptions,
) -> list[list[ScoredRow]]:
    """At most k volumes for each query. asked: for each member the queries under it.

    Each member names candidates. `rrf` fuses their ranks; `concat` scores each candidate exactly under every member.
    With the exact index all volumes are candidates, so that the result is exact too.
    """
    if fuse not in FUSIONS:
        raise UsageError(f"fuse '{fuse}' is not available; there are {', '.join(FUSIONS)}")
    if fuse == CONCAT and mode not in (VOLUME, LATE):
        raise UsageError(f"fuse '{CONCAT}' adds up cosines, which mode '{mode}' has none of: take fuse '{RRF}'")
    wanted = contents.manifest.counts.embedded + contents.manifest.counts.unchanged if index == EXACT else 0
    wanted = max(wanted, options.candidates, k)
    weights = [member.weight for member in members]
    by_member = [
        snapshot.rank(
            own, wanted, model=member.model, aggregation=member.aggregation, index=index, mode=mode,
            excluded=excluded, where=where, options=options,
        )
        for member, own in zip(members, asked, strict=True)
    ]  # fmt: skip
    ranked = []
    for number in range(len(excluded)):
        found = [ranking[number] for ranking in by_member]
        if fuse == RRF:
            fused = reciprocal_rank([[one.volume_id for one in own] for own in found], weights)
        else:
            named = frozenset(one.volume_id for own in found for one in own)
            scores = [
                _exact(contents, member, mode, queries[number], own, named, options)
                for member, queries, own in zip(members, asked, found, strict=True)
            ]
            fused = weighted_sum(scores, weights)
        ranked.append([ScoredRow(score, volume_id, -1, -1) for volume_id, score in fused[:k]])
    return ranked


def _exact(
    contents: Contents,
    member: Member,
    mode: str,
    query: QueryVectors,
    found: Sequence[ScoredRow],
    named: AbstractSet[str],
    options: ModeOptions,
) -> dict[str, float]:
    """The scores of the named volumes under one member; those that it found itself are known."""
    scores = {one.volume_id: one.score for one in found}
    others = sorted(named - scores.keys())
    if not others:
        return scores
    entry = contents.recipe(member.model)
    if mode == LATE:
        slices = contents.index(entry, None)
        places = [shard.places_named(frozenset(others)) for shard in slices.shards]
        (ranked,) = score_late([query], len(others), slices, places, options)
        return scores | {one.volume_id: one.score for one in ranked}
    volumes = contents.index(entry, member.aggregation)
    for volume_id in others:
        stored = volumes.vectors_of(volume_id)
        if stored is not None:
            product = stored.vectors[0].astype(np.float64) @ query.volume.astype(np.float64)
            scores[volume_id] = float(np.float32(product))
    return scores
