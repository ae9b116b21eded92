"""Where in a hit a query lies: the contiguous range of slices that matches it best. Pure functions over cosines.

Body parts follow one another at the same pace in both volumes, up to one scale. So the query is laid onto the hit as a
straight line, from slice s to slice e, and the line along which the mean cosine is highest is taken. All of the
query's slices take part: neighbours that look the same move the mean little, the whole sequence settles the place.
Where both spacings are known, the line is about as long in millimetres as the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from statistics import median

import numpy as np
from numpy.typing import NDArray

ENDS = 97  # places tried for either end of the line
SLICES = 48  # slices of the query that take part, evenly chosen
TIE = 1e-6
STRETCH = 1.6  # by which bodies differ in size, child and tall adult left aside


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
