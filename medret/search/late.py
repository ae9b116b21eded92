"""The late-interaction score (MaxSim): all slices of the query against all stored slices of a volume. Pure functions.

    score(query, volume) = mean over the query's slices q of (max over the volume's slices v of cos(q, v))

`symmetric` averages this with the score in the other direction, so that a volume that shows more than the query does
not win by size alone. `same_plane` compares only slices of the same plane, where both planes are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medret.recipe import PLANES

UNKNOWN = -1  # plane of a slice whose vector came without one


@dataclass(frozen=True)
class SliceSets:
    """The slices of several volumes (or queries), one volume after another.

    vectors: (n, dim) float64, unit length. planes: (n,) index in PLANES, or UNKNOWN. starts: (m,) first slice of each
    volume, strictly ascending from 0, because no volume is empty. weights: (n,) of the slices, None for equal ones.
    """

    vectors: NDArray[np.float64]
    planes: NDArray[np.int8]
    starts: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def owners(self) -> NDArray[np.int64]:
        """(n,) the volume that each slice belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts, append=len(self.vectors)))

    def only(self, chosen: NDArray[np.bool_]) -> SliceSets:
        """The chosen (m,) volumes."""
        owners = self.owners
        kept = chosen[owners]
        lengths = np.bincount(owners, minlength=len(self))[chosen]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)[:-1]]) if len(lengths) else lengths
        weights = None if self.weights is None else self.weights[kept]
        return SliceSets(self.vectors[kept], self.planes[kept], starts, weights)


def plane_codes(planes: Sequence[str | None]) -> NDArray[np.int8]:
    """Convert names of planes to their indices in PLANES; UNKNOWN for None."""
    codes: dict[str | None, int] = {name: code for code, name in enumerate(PLANES)}
    return np.array([codes.get(plane, UNKNOWN) for plane in planes], np.int8)


def late_scores(
    queries: SliceSets, volumes: SliceSets, *, symmetric: bool = False, same_plane: bool = True
) -> NDArray[np.float64]:
    """(queries, volumes) late-interaction scores.

    Slices whose plane the other side lacks do not count; volumes that share no plane are compared across planes.
    Memory: a few arrays of (slices of the queries) x (slices of the volumes) float64; the caller limits both.
    """
    if not len(queries) or not len(volumes):
        return np.zeros((len(queries), len(volumes)))
    forward, backward = _Half(queries, volumes), _Half(volumes, queries)
    for plane in np.unique(volumes.planes) if same_plane else (None,):
        query_slices = np.arange(len(queries.vectors)) if plane is None else _comparable(queries.planes, plane)
        volume_slices = np.arange(len(volumes.vectors)) if plane is None else np.flatnonzero(volumes.planes == plane)
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
            lone, this_query = np.isnan(scores[query]), np.arange(len(queries)) == query
            alone = queries.only(this_query), volumes.only(lone)
            scores[query, lone] = late_scores(*alone, symmetric=symmetric, same_plane=False)[0]
    return scores


class _Half:
    """One direction: the best match of each slice of `sets` in each volume of `others`."""

    def __init__(self, sets: SliceSets, others: SliceSets) -> None:
        self._sets = sets
        self._owners = others.owners
        self._best = np.full((len(sets.vectors), len(others)), -np.inf)

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
        total = np.add.reduceat(weighted, self._sets.starts, axis=0)
        shares = np.add.reduceat(compared * weights[:, None], self._sets.starts, axis=0)
        with np.errstate(invalid="ignore"):
            means: NDArray[np.float64] = total / np.where(shares > 0, shares, np.nan)
        return means


def _comparable(planes: NDArray[np.int8], plane: int) -> NDArray[np.int64]:
    return np.flatnonzero((planes == plane) | (planes == UNKNOWN))
