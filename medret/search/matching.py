"""Which slices of a hit are like which of the query. Pure functions over unit vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from medret.search.hit import Range, SliceMatch, SlicePair
from medret.search.localise import half_step, locate

# Pairs this close are equal but for float16; among them the one nearest the middle of the query comes first.
EQUAL_WITHIN = 2e-4
PAIRS_MAX = 64


@dataclass(frozen=True)
class SliceVectors:
    """The slice vectors of a query or of a stored volume, in order.

    vectors: (n, dim) float32, unit length. planes: n names, None where unknown (a query given as an array).
    positions: (n,) slice positions, ascending in each plane; None for a query that is one volume vector and has no
    slices.
    """

    vectors: NDArray[np.float32]
    planes: Sequence[str | None]
    positions: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.vectors)

    def only(self, chosen: NDArray[np.int64]) -> SliceVectors:
        """The chosen slices."""
        positions = None if self.positions is None else self.positions[chosen]
        return SliceVectors(self.vectors[chosen], [self.planes[number] for number in chosen.tolist()], positions)


def match_slices(
    query: SliceVectors, hit: SliceVectors, asked: Range | None = None, paces: Mapping[str, float] | None = None
) -> SliceMatch | None:
    """Where a hit matches a query, in the plane where it does so best; None when either side has no slices.

    Slices of the same plane are compared, where the query's planes are known and the hit has one of them.
    asked: the positions that the query was asked to be of, which may reach beyond its slices. paces: by plane,
    positions of the hit that are as far in millimetres as one of the query, where that is known.
    """
    if not len(query) or not len(hit):
        return None
    assert hit.positions is not None  # stored slices always have positions
    cosines = np.minimum(query.vectors @ hit.vectors.T, 1.0)  # float16 lengths may exceed 1 by a little
    own, other = np.array(query.planes, object), np.array(hit.planes, object)
    known = own != None  # noqa: E711  # elementwise
    shared = [plane for plane in dict.fromkeys(hit.planes) if not known.all() or plane in query.planes]
    free = not shared  # no plane in common: compare across them
    comparable = np.ones(cosines.shape, bool) if free else (own[:, None] == other[None]) | ~known[:, None]
    best: SliceMatch | None = None
    for plane in shared or dict.fromkeys(hit.planes):
        rows = np.arange(len(query)) if free else np.flatnonzero((own == plane) | ~known)
        columns = np.flatnonzero(other == plane)
        match = _in_plane(
            str(plane or ""),
            query.only(rows),
            hit.only(columns),
            cosines[np.ix_(rows, columns)],
            asked,
            (paces or {}).get(str(plane)),
        )
        if best is None or match.score > best.score:
            best = match
    assert best is not None
    pairs = _pairs(query, hit, np.where(comparable, cosines, -np.inf))
    return SliceMatch(best.plane, best.query, best.hit, best.score, _best_first(pairs, best.plane, len(query)))


def nearest_of_each(query: NDArray[np.float32], sets: Sequence[NDArray[np.uint8]]) -> list[tuple[int, float]]:
    """For each set of unit vectors the first that is nearest to the (dim,) query, and its cosine.

    sets: (n, 2 dim) bytes of float16 vectors, n >= 1.
    """
    if not sets:
        return []
    cosines = np.concatenate(sets).view(np.float16).astype(np.float32) @ query
    best, start = [], 0
    for own in sets:
        at = int(cosines[start : start + len(own)].argmax())
        best.append((at, min(float(cosines[start + at]), 1.0)))  # float16 lengths may exceed 1 by a little
        start += len(own)
    return best


def match_of(query: SliceVectors, own: int, hit: SliceVectors, other: int, score: float) -> SliceMatch:
    """The match of the query's slice number `own` with the hit's slice number `other`, and with nothing else."""
    assert hit.positions is not None
    asked = None if query.positions is None else int(query.positions[own])
    pair = SlicePair(hit.planes[other] or "", asked, int(hit.positions[other]), score)
    return SliceMatch(pair.plane, None if asked is None else (asked, asked), (pair.hit, pair.hit), score, (pair,))


def _in_plane(
    plane: str,
    query: SliceVectors,
    hit: SliceVectors,
    cosines: NDArray[np.float32],
    asked: Range | None,
    pace: float | None,
) -> SliceMatch:
    assert hit.positions is not None
    if query.positions is None:  # a volume vector
        at = int(cosines[0].argmax())
        place = int(hit.positions[at])
        return SliceMatch(plane, None, (place, place), float(cosines[0, at]))
    covered = asked
    if covered is None:
        margin = half_step(query.positions)
        covered = (max(0, ceil(query.positions[0] - margin)), floor(query.positions[-1] + margin))
    located = locate(cosines, query.positions, hit.positions, covered, pace)
    return SliceMatch(plane, covered, located.range, located.score)


def _pairs(query: SliceVectors, hit: SliceVectors, cosines: NDArray[np.float32]) -> list[tuple[int, SlicePair]]:
    """The best slice of the hit for each slice of the query that has one."""
    assert hit.positions is not None
    pairs = []
    for own, other in enumerate(cosines.argmax(axis=1).tolist()):
        if np.isfinite(cosines[own, other]):
            asked = None if query.positions is None else int(query.positions[own])
            score = float(cosines[own, other])
            pairs.append((own, SlicePair(hit.planes[other] or "", asked, int(hit.positions[other]), score)))
    return pairs


def _best_first(pairs: list[tuple[int, SlicePair]], plane: str, slices: int) -> tuple[SlicePair, ...]:
    """The most similar pair of the plane, then the others in their order; the best PAIRS_MAX of them."""
    kept = sorted(sorted(pairs, key=lambda one: -one[1].score)[:PAIRS_MAX], key=lambda one: one[0])
    own = [one for one in kept if one[1].plane == plane] or kept
    least = max(pair.score for _, pair in own) - EQUAL_WITHIN
    first = min((one for one in own if one[1].score >= least), key=lambda one: abs(one[0] - (slices - 1) / 2))
    return (first[1], *(pair for number, pair in kept if number != first[0]))
