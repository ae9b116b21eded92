"""Which slices of a hit match which slices of the query, and how well all of them do. Pure functions over unit vectors.

`match_slices` pairs the slices. `locate` finds the contiguous range of the hit that matches the query best: body parts
follow one another at the same pace in both volumes, up to one scale, so the query is laid onto the hit as a straight
line from slice s to slice e, and the line with the highest mean cosine wins. All slices of the query take part:
neighbours that look alike hardly move the mean, so the whole sequence decides. Where both spacings are known, the line
is about as long in millimetres as the query.

`late_scores` is late interaction (MaxSim): all slices of the query against all stored slices of a volume,

    score(query, volume) = mean over the query's slices q of (max over the volume's slices v of cos(q, v))

`symmetric` averages this with the score in the other direction, so that a volume that shows more than the query does
not win by size alone. `same_plane` compares only slices of the same plane, where both planes are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.embeddings.slices import UNKNOWN, Slices
from medret.recipe import PLANES
from medret.search.hit import Range, SliceMatch, SlicePair

# Cosines this close differ only by float16 rounding; of such pairs, the one nearest the middle of the query is first.
EQUAL_WITHIN = 2e-4
ENDS = 97  # positions tried for each end of the line
SLICES = 48  # slices of the query that are compared, evenly spaced
TIE = 1e-6  # mean cosines this close are equal
STRETCH = 1.6  # bodies differ in size by at most this factor, except those of children and very tall adults
PAIRS_MAX = 64


def match_slices(
    query: Slices, hit: Slices, requested: Range | None = None, paces: Mapping[str, float] | None = None
) -> SliceMatch | None:
    """Where a hit matches a query, in the plane where it does so best; None when either side has no slices.

    Slices of the same plane are compared, where the query's planes are known and the hit has one of them.
    requested: the range of slice indices that the user asked for, which may reach beyond the query's slices. paces: per
    plane, how many slices of the hit span as many millimetres as one slice of the query, where that is known.
    """
    if not len(query) or not len(hit):
        return None
    assert hit.slice_indices is not None  # stored slices always have one
    cosines = np.minimum(query.vectors @ hit.vectors.T, 1.0)  # float16 lengths may exceed 1 by a little
    known, planes = query.planes != UNKNOWN, dict.fromkeys(hit.planes.tolist())
    shared = [plane for plane in planes if not known.all() or plane in query.planes]
    free = not shared  # no plane in common: compare across them
    same_plane = (query.planes[:, None] == hit.planes[None]) | ~known[:, None]
    comparable = np.ones(cosines.shape, bool) if free else same_plane
    best: SliceMatch | None = None
    for plane in shared or planes:
        rows = np.arange(len(query)) if free else np.flatnonzero((query.planes == plane) | ~known)
        columns, name = np.flatnonzero(hit.planes == plane), _name(plane)
        match = _in_plane(
            name,
            query.take(rows),
            hit.take(columns),
            cosines[np.ix_(rows, columns)],
            requested,
            (paces or {}).get(name),
        )
        if best is None or match.score > best.score:
            best = match
    assert best is not None
    pairs = _pairs(query, hit, np.where(comparable, cosines, -np.inf))
    return SliceMatch(best.plane, best.query, best.hit, best.score, _best_first(pairs, best.plane, len(query)))


def _name(plane: int) -> str:
    return "" if plane == UNKNOWN else PLANES[plane]


def nearest_of_each(query: NDArray[np.float32], sets: Sequence[NDArray[np.uint8]]) -> list[tuple[int, float]]:
    """For each set of unit vectors: the row nearest to the (dim,) query, the first of equals, and its cosine.

    sets: (n, 2 dim) bytes of float16 vectors, n >= 1.
    """
    if not sets:
        return []
    cosines = np.concatenate(sets).view(np.float16).astype(np.float32) @ query
    best, start = [], 0
    for vectors in sets:
        at = int(cosines[start : start + len(vectors)].argmax())
        best.append((at, min(float(cosines[start + at]), 1.0)))  # float16 lengths may exceed 1 by a little
        start += len(vectors)
    return best


def match_of(query: Slices, query_slice: int, hit: Slices, hit_slice: int, score: float) -> SliceMatch:
    """The match of one slice of the query with one slice of the hit: their numbers and their cosine."""
    assert hit.slice_indices is not None
    query_index = None if query.slice_indices is None else int(query.slice_indices[query_slice])
    pair = SlicePair(_name(hit.planes[hit_slice]), query_index, int(hit.slice_indices[hit_slice]), score)
    query_range = None if query_index is None else (query_index, query_index)
    return SliceMatch(pair.plane, query_range, (pair.hit, pair.hit), score, (pair,))


def _in_plane(
    plane: str,
    query: Slices,
    hit: Slices,
    cosines: NDArray[np.float32],
    requested: Range | None,
    pace: float | None,
) -> SliceMatch:
    assert hit.slice_indices is not None
    if query.slice_indices is None:  # a volume vector
        nearest = int(cosines[0].argmax())
        index = int(hit.slice_indices[nearest])
        return SliceMatch(plane, None, (index, index), float(cosines[0, nearest]))
    covered = requested
    if covered is None:
        margin = half_step(query.slice_indices)
        covered = (max(0, ceil(query.slice_indices[0] - margin)), floor(query.slice_indices[-1] + margin))
    located = locate(cosines, query.slice_indices, hit.slice_indices, covered, pace)
    return SliceMatch(plane, covered, located.range, located.score)


def _pairs(query: Slices, hit: Slices, cosines: NDArray[np.float32]) -> list[tuple[int, SlicePair]]:
    """The best slice of the hit for each slice of the query that has one."""
    assert hit.slice_indices is not None
    pairs = []
    for query_slice, hit_slice in enumerate(cosines.argmax(axis=1).tolist()):
        if np.isfinite(cosines[query_slice, hit_slice]):
            query_index = None if query.slice_indices is None else int(query.slice_indices[query_slice])
            plane, hit_index = _name(hit.planes[hit_slice]), int(hit.slice_indices[hit_slice])
            pair = SlicePair(plane, query_index, hit_index, float(cosines[query_slice, hit_slice]))
            pairs.append((query_slice, pair))
    return pairs


def _best_first(pairs: list[tuple[int, SlicePair]], plane: str, slices: int) -> tuple[SlicePair, ...]:
    """The most similar pair of the plane, then the others in their order; the best PAIRS_MAX of them."""
    kept = sorted(sorted(pairs, key=lambda numbered: -numbered[1].score)[:PAIRS_MAX], key=lambda numbered: numbered[0])
    in_plane = [numbered for numbered in kept if numbered[1].plane == plane] or kept
    least = max(pair.score for _, pair in in_plane) - EQUAL_WITHIN
    best = [numbered for numbered in in_plane if numbered[1].score >= least]
    first, pair = min(best, key=lambda numbered: abs(numbered[0] - (slices - 1) / 2))
    return (pair, *(other for number, other in kept if number != first))


@dataclass(frozen=True)
class SliceRangeMatch:
    """range: first and last slice index in the hit, inclusive. score: mean cosine along the line."""

    range: tuple[int, int]
    score: float


def half_step(positions: NDArray[np.integer[Any]]) -> float:
    """Half the median gap between slices: how many slice indices a slice stands for on either side of it."""
    return (median(np.diff(positions).tolist()) - 1) / 2 if len(positions) > 1 else 0.0


def locate(
    cosines: NDArray[np.float32],
    query: NDArray[np.integer[Any]],
    hit: NDArray[np.integer[Any]],
    covered: tuple[int, int],
    pace: float | None = None,
) -> SliceRangeMatch:
    """The range of the hit that matches `covered`, the first and last slice index of the query, both inclusive.

    cosines: (q, h). query, hit: (q,) and (h,) slice indices, ascending. pace: how many slices of the hit span as many
    millimetres as one slice of the query; None when that is not known.
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


def lengths_allowed(length: float, most: int) -> tuple[int, int]:
    """The shortest and longest line, in grid steps, that counts as about `length` steps long.

    0 <= shortest <= longest <= most for every length, so there is always such a line: a point for a query that is much
    shorter than a step, the whole hit for one that is longer than the hit.
    """
    shortest, longest = (min(bound, float(most)) for bound in (length / STRETCH, length * STRETCH))
    return round(shortest), round(longest)


def lines(places: int, shortest: int, longest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end of all lines with these lengths between grid points, shorter ones first, then by start."""
    starts, ends = _all_lines(places)
    of_length = slice(*(length * places - length * (length - 1) // 2 for length in (shortest, longest + 1)))
    return starts[of_length], ends[of_length]


@lru_cache(maxsize=2)
def _all_lines(places: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = np.concatenate([np.arange(places - length) for length in range(places)])
    return starts, starts + np.repeat(np.arange(places), np.arange(places, 0, -1))


def interpolated(
    rows: NDArray[np.float32], at: NDArray[np.integer[Any]], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate linearly: (q, h) values at the ascending (h,) positions `at` -> (q, g) values on `grid`."""
    if len(at) == 1:
        return np.repeat(rows.astype(np.float64), len(grid), axis=1)
    left = np.minimum(np.searchsorted(at, grid, side="right") - 1, len(at) - 2)
    part = (grid - at[left]) / (at[left + 1] - at[left])
    values: NDArray[np.float64] = rows[:, left] * (1 - part) + rows[:, left + 1] * part
    return values


def best_line(
    cosines: NDArray[np.float32],
    query: NDArray[np.integer[Any]],
    hit: NDArray[np.integer[Any]],
    pace: float | None = None,
) -> tuple[float, float, float]:
    """Where the query's first and last slice lie in the hit, as slice indices, and the mean cosine along that line."""
    chosen = np.linspace(0, len(query) - 1, min(len(query), SLICES)).round().astype(np.int64)  # steps of 1 or more
    query_indices = query[chosen]
    grid = np.linspace(hit[0], hit[-1], ENDS if len(hit) > 1 else 1)
    along = interpolated(cosines[chosen], hit, grid)
    share = (query_indices - query_indices[0]) / max(1, query_indices[-1] - query_indices[0])
    shortest, longest = 0, len(grid) - 1 if len(query_indices) > 1 else 0
    if pace is not None and len(query_indices) > 1 and len(grid) > 1:
        steps = pace * (query_indices[-1] - query_indices[0]) / (grid[1] - grid[0])
        shortest, longest = lengths_allowed(steps, len(grid) - 1)
    starts, ends = lines(len(grid), shortest, longest)
    total = np.zeros(len(starts))
    for row, at in zip(along, share.tolist(), strict=True):
        total += row[np.rint(starts + at * (ends - starts)).astype(np.int64)]
    means = total / len(query_indices)
    # Of equal lines take the longest: a query must not shrink to a point where the hit is uniform.
    equal = np.flatnonzero(means >= means.max() - TIE)
    best = equal[(ends - starts)[equal].argmax()]
    return float(grid[starts[best]]), float(grid[ends[best]]), float(means[best])


def late_scores(
    queries: Slices, volumes: Slices, *, symmetric: bool = False, same_plane: bool = True
) -> NDArray[np.float64]:
    """(queries, volumes) late-interaction scores.

    Slices whose plane the other side lacks do not count; volumes that share no plane are compared across planes.
    queries, volumes: with float64 vectors. Memory: a few arrays of (slices of the queries) x (slices of the volumes)
    float64; the caller limits both.
    """
    if not len(queries) or not len(volumes):
        return np.zeros((len(queries.firsts), len(volumes.firsts)))
    forward, backward = _Half(queries, volumes), _Half(volumes, queries)
    for plane in np.unique(volumes.planes) if same_plane else (None,):
        query_slices = np.arange(len(queries)) if plane is None else _comparable(queries.planes, plane)
        volume_slices = np.arange(len(volumes)) if plane is None else np.flatnonzero(volumes.planes == plane)
        if not len(query_slices):
            continue
        cosines = queries.vectors[query_slices] @ volumes.vectors[volume_slices].T
        forward.add(cosines, query_slices, volume_slices)
        if symmetric:
            backward.add(cosines.T, volume_slices, query_slices)
    scores = forward.means()
    if symmetric:
        scores = (scores + backward.means().T) / 2
    if same_plane:
        for query in np.flatnonzero(np.isnan(scores).any(axis=1)):  # shares no plane with some volume
            lone, this_query = np.isnan(scores[query]), np.arange(len(scores)) == query
            alone = queries.of_volumes(this_query), volumes.of_volumes(lone)
            scores[query, lone] = late_scores(*alone, symmetric=symmetric, same_plane=False)[0]
    return scores


class _Half:
    """One direction: the best match of each slice of `sets` in each volume of `others`."""

    def __init__(self, sets: Slices, others: Slices) -> None:
        self._sets = sets
        self._owners = others.owners
        self._best = np.full((len(sets), len(others.firsts)), -np.inf)

    def add(self, cosines: NDArray[np.float64], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        """Take in the cosines of slices `rows` of `sets` with slices `columns` of `others`, both ascending."""
        owners = self._owners[columns]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        best = np.maximum.reduceat(cosines, starts, axis=1)
        at = np.ix_(rows, owners[starts])
        self._best[at] = np.maximum(self._best[at], best)

    def means(self) -> NDArray[np.float64]:
        """(sets, others) weighted means over the slices that could be compared; NaN where none could."""
        compared = np.isfinite(self._best)
        weights = np.ones(len(self._best)) if self._sets.weights is None else self._sets.weights
        weighted = np.where(compared, self._best, 0.0) * weights[:, None]
        total = np.add.reduceat(weighted, self._sets.firsts, axis=0)
        shares = np.add.reduceat(compared * weights[:, None], self._sets.firsts, axis=0)
        with np.errstate(invalid="ignore"):
            means: NDArray[np.float64] = total / np.where(shares > 0, shares, np.nan)
        return means


def _comparable(planes: NDArray[np.int8], plane: int) -> NDArray[np.int64]:
    return np.flatnonzero((planes == plane) | (planes == UNKNOWN))
