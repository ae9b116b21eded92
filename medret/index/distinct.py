"""Equal vectors of a shard, of which the approximate indices hold only the first.

Archives repeat themselves: copies of a file, and above all empty slices, which give the same vector in every volume. In
an HNSW graph, more copies of one vector than a node has links are linked to each other alone: a search that
enters them cannot leave. In LSH they use up the candidates.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from medret.index.neighbours import MISSING, Neighbours, best_first, mask_of_rows


def first_equal(vectors: NDArray[np.float16]) -> NDArray[np.int32]:
    """For each of (n, dim) vectors the first row with the same bits, (n,) int32: its own where it is the first."""
    seen: dict[bytes, int] = {}
    rows = np.ascontiguousarray(vectors)
    firsts = (seen.setdefault(blake2b(vector, digest_size=16).digest(), row) for row, vector in enumerate(rows))
    return np.fromiter(firsts, np.int32, len(rows))


FEW = 1024  # excluded rows that are looked up one by one; beyond, all are counted


class Distinct:
    """The distinct vectors of a shard, numbered in the order of their first rows.

    rows: (distinct,) int64, the first row of each.
    """

    def __init__(self, first: NDArray[np.int32]) -> None:
        self.rows: NDArray[np.int64] = np.flatnonzero(first == np.arange(len(first)))
        self._first = first
        self._sizes = np.bincount(first, minlength=len(first))[self.rows]
        self._repeated = len(self.rows) < len(first)
        self._members = np.argsort(first, kind="stable") if self._repeated else self.rows
        self._ends = np.cumsum(self._sizes)

    def hidden_by(self, excluded: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        """Numbers of the distinct vectors all of whose rows are excluded (each named once); None when nothing is."""
        if excluded is None or not len(excluded):
            return None
        if not self._repeated:
            return excluded
        if len(excluded) < FEW:
            own = np.searchsorted(self.rows, self._first[excluded])
            numbers, counts = np.unique(own, return_counts=True)
            few: NDArray[np.int64] = numbers[counts == self._sizes[numbers]].astype(np.int64)
            return few
        gone = np.bincount(self._first[excluded], minlength=len(self._first))[self.rows]
        return np.flatnonzero(gone == self._sizes)

    def rows_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of each numbered vector; missing ones stay missing."""
        if not self._repeated:
            return numbers
        return np.where(numbers == MISSING, MISSING, self.rows[numbers])

    def expand(
        self, scores: NDArray[np.float32], numbers: NDArray[np.int64], k: int, excluded: NDArray[np.int64] | None
    ) -> Neighbours:
        """The k best rows of each query, given (q, m) numbers of distinct vectors, none hidden by `excluded`."""
        if not self._repeated or (self._sizes[numbers] == 1).all():
            return best_first(scores, self.rows_of(numbers), k)
        dropped = None if excluded is None else mask_of_rows(excluded, len(self._first))
        out_scores = np.full((len(numbers), k), -np.inf, np.float32)
        out_rows = np.full((len(numbers), k), MISSING, np.int64)
        for query, (own_scores, own_numbers) in enumerate(zip(scores, numbers, strict=True)):
            found = own_numbers != MISSING
            groups = [self._copies(number, dropped)[:k] for number in own_numbers[found]]
            repeated = np.repeat(own_scores[found], [len(group) for group in groups])
            best = best_first(repeated[None], np.concatenate([*groups, np.empty(0, np.int64)])[None], k)
            out_scores[query, : best.rows.shape[1]] = best.scores[0]
            out_rows[query, : best.rows.shape[1]] = best.rows[0]
        return Neighbours(out_scores, out_rows)

    def _copies(self, number: int, dropped: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self._members[self._ends[number] - self._sizes[number] : self._ends[number]]
        return rows if dropped is None else rows[~dropped[rows]]
