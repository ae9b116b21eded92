"""The late-interaction score (MaxSim): all slices of the query against all stored slices of a volume. Pure functions.

    score(query, volume) = mean over the query's slices q of (max over the volume's slices v of cos(q, v))

`symmetric` averages this with the score in the other direction, so that a volume that shows more than the query does
not win by size alone. `same_plane` compares only slices of the same plane, where both planes are known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medret.embeddings.slices import UNKNOWN, Slices


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
