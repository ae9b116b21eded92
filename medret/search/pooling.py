"""From what the slices of a query found to ranked volumes: `vote`, `max` and `sum`. Pure functions.

Each slice of the query gives one vote, in `per_slice` equal places, to the slices nearest to it. Where the places run
out among slices that are equally near, these share the places that are left. Where they are more than can be looked for
(empty slices, which are the same in every volume), none of them gets these places: such a slice says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medret.search.merge import ScoredRow

VOTE, MAX, SUM = "vote", "max", "sum"

# Slices looked for beyond `per_slice` when some are equally near: so many copies of a slice share its places.
COPIES_MAX = 64
EQUAL = 1e-6  # cosines of equal vectors differ by their rounding


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
