"""Which slices of a hit match which slices of the query. Pure functions over unit vectors.

`match_slices` pairs the slices. `locate` finds the contiguous range of the hit that matches the query best: body parts
follow one another at the same pace in both volumes, up to one scale, so the query is laid onto the hit as a straight
line from slice s to slice e, and the line with the highest mean cosine wins. All slices of the query take part:
neighbours that look alike hardly move the mean, so the whole sequence decides. Where both spacings are known, the line
is about as long in millimetres as the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from statistics import median

import numpy as np
from numpy.typing import NDArray

from medret.search.hit import Range, SliceMatch, SlicePair

# Pairs this close are equal but for float16; among them the one nearest the middle of the query comes first.
EQUAL_WITHIN = 2e-4
ENDS = 97  # places tried for either end of the line
SLICES = 48  # slices of the query that take part, evenly chosen
TIE = 1e-6
STRETCH = 1.6  # by which bodies differ in size, child and tall adult left aside
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


@dataclass(frozen=True)
class SliceRangeMatch:
    """range: first and last position in the hit, inclusive. score: mean cosine along the line."""

    range: tuple[int, int]
    score: float


def half_step(positions: NDArray[np.int64]) -> float:
    """Half the usual distance between slices, less the slice itself: what a slice stands for on either side of it."""
    return (median(np.diff(positions).tolist()) - 1) / 2 if len(positions) > 1 else 0.0


def locate(
    cosines: NDArray[np.float32],
    query: NDArray[np.int64],
    hit: NDArray[np.int64],
    covered: tuple[int, int],
    pace: float | None = None,
) -> SliceRangeMatch:
    """Where `covered`, positions of the query, first and last inclusive, lies in the hit.

    cosines: (q, h) of the slices at the positions query (q,) and hit (h,), both ascending. pace: how many
    positions of the hit are as far, in millimetres, as one of the query; None when that is not known.
    """
    margin = half_step(hit)
    least, most = max(0, ceil(hit[0] - margin)), floor(hit[-1] + margin)
    start, end, score = best_line(cosines, query, hit, pace)
    length = float(query[-1] - query[0])
    if length:
        scale = (end - start) / length
        first = start + scale * (covered[0] - 0.5 - query[0])
        last = end + scale * (covered[1] + 0.5 - query[-1])
    else:  # one slice has no scale: what the slice of the hit stands for
        first, last = start - margin - 0.5, start + margin + 0.5
    low = min(max(round(first + 0.5), least), most)
    high = min(max(round(last - 0.5), low), most)
    return SliceRangeMatch((low, high), score)


def lengths_allowed(wanted: float, most: int) -> tuple[int, int]:
    """The shortest and longest line, in steps between places, that is about `wanted` steps long.

    0 <= shortest <= longest <= most, whatever is wanted, so that there is always such a line: a point for a query that
    is much shorter than a step, the whole hit for one that is longer than the hit.
    """
    shortest, longest = (min(length, float(most)) for length in (wanted / STRETCH, wanted * STRETCH))
    return round(shortest), round(longest)


def lines(places: int, shortest: int, longest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end of the lines between places that are so long, shorter ones first, then by start."""
    starts, ends = _all_lines(places)
    of_length = slice(*(length * places - length * (length - 1) // 2 for length in (shortest, longest + 1)))
    return starts[of_length], ends[of_length]


@lru_cache(maxsize=2)
def _all_lines(places: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = np.concatenate([np.arange(places - length) for length in range(places)])
    return starts, starts + np.repeat(np.arange(places), np.arange(places, 0, -1))


def interpolated(rows: NDArray[np.float32], at: NDArray[np.int64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """(q, g) values of (q, h) rows, given at the ascending (h,) places, between them."""
    if len(at) == 1:
        return np.repeat(rows.astype(np.float64), len(grid), axis=1)
    left = np.minimum(np.searchsorted(at, grid, side="right") - 1, len(at) - 2)
    part = (grid - at[left]) / (at[left + 1] - at[left])
    values: NDArray[np.float64] = rows[:, left] * (1 - part) + rows[:, left + 1] * part
    return values


def best_line(
    cosines: NDArray[np.float32], query: NDArray[np.int64], hit: NDArray[np.int64], pace: float | None = None
) -> tuple[float, float, float]:
    """Positions in the hit of the query's first and last slice, and the mean cosine along the line between them."""
    chosen = np.linspace(0, len(query) - 1, min(len(query), SLICES)).round().astype(np.int64)  # steps of 1 or more
    own = query[chosen]
    grid = np.linspace(hit[0], hit[-1], ENDS if len(hit) > 1 else 1)
    along = interpolated(cosines[chosen], hit, grid)
    share = (own - own[0]) / max(1, own[-1] - own[0])
    shortest, longest = 0, len(grid) - 1 if len(own) > 1 else 0
    if pace is not None and len(own) > 1 and len(grid) > 1:
        shortest, longest = lengths_allowed(pace * (own[-1] - own[0]) / (grid[1] - grid[0]), len(grid) - 1)
    starts, ends = lines(len(grid), shortest, longest)
    total = np.zeros(len(starts))
    for row, at in zip(along, share.tolist(), strict=True):
        total += row[np.rint(starts + at * (ends - starts)).astype(np.int64)]
    means = total / len(own)
    # Of equal lines the longest: a query does not shrink to a point of the hit because the hit is uniform there.
    equal = np.flatnonzero(means >= means.max() - TIE)
    best = equal[(ends - starts)[equal].argmax()]
    return float(grid[starts[best]]), float(grid[ends[best]]), float(means[best])
