"""Which slice of a hit is most like which slice of the query. Pure functions over unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medret.search.hit import SliceMatch

# Pairs this close are equal but for float16; among them the one nearest the middle of the query is taken.
EQUAL_WITHIN = 2e-4


@dataclass(frozen=True)
class SliceVectors:
    """The slice vectors of a query or of a stored volume, in order.

    vectors: (n, dim) float32, unit length. planes: n names, None where unknown (a query given as an array).
    positions: (n,) slice positions; None for a query that is one volume vector and has no slices.
    """

    vectors: NDArray[np.float32]
    planes: Sequence[str | None]
    positions: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.vectors)


def best_pair(query: SliceVectors, hit: SliceVectors) -> SliceMatch | None:
    """The most similar pair of slices, of the same plane where the query's planes are known and the hit has them.

    None when either side has no slices.
    """
    if not len(query) or not len(hit):
        return None
    cosines = np.minimum(query.vectors @ hit.vectors.T, 1.0)  # float16 lengths may exceed 1 by a little
    comparable = np.array([[own is None or own == other for other in hit.planes] for own in query.planes])
    if comparable.any():
        cosines = np.where(comparable, cosines, -np.inf)
    best = np.argwhere(cosines >= cosines.max() - EQUAL_WITHIN)
    middle = (len(query) - 1) / 2
    own, other = best[np.abs(best[:, 0] - middle).argmin()]
    return match_of(query, int(own), hit, int(other), float(cosines[own, other]))


def match_of(query: SliceVectors, own: int, hit: SliceVectors, other: int, score: float) -> SliceMatch:
    """The match of the query's slice number `own` with the hit's slice number `other`."""
    positions = hit.positions
    assert positions is not None  # stored slices always have positions
    plane = hit.planes[other]
    found = int(positions[other])
    if query.positions is None:
        return SliceMatch(plane or "", None, (found, found), score)
    asked = int(query.positions[own])
    return SliceMatch(plane or "", (asked, asked), (found, found), score)
