"""Equal vectors of a shard: the approximate indices hold only the first of each.

Archives repeat themselves: copies of files and, above all, empty slices, which have the same vector in every volume. In
an HNSW graph, copies of a vector that outnumber a node's links are linked only to each other: a search that enters them
cannot leave. In LSH they use up the candidates.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from medret.index.neighbours import MISSING, Neighbours, best_first, mask_of_rows


def first_equal(vectors: NDArray[np.float16]) -> NDArray[np.int32]:
    """(n,) int32: for each of (n, dim) vectors, the first row with the same bits (possibly its own)."""
    seen: dict[bytes, int] = {}
    rows = np.ascontiguousarray(vectors)
    firsts = (seen.setdefault(blake2b(vector, digest_size=16).digest(), row) for row, vector in enumerate(rows))
    return np.fromiter(firsts, np.int32, len(rows))


FEW = 1024  # up to this many excluded rows are looked up one by one; beyond, all rows are counted


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

    def excluded_numbers(self, excluded: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        """Numbers of the distinct vectors whose rows are all excluded; None if no row is. excluded: unique rows."""
        if excluded is None or not len(excluded):
            return None
        if not self._repeated:
            return excluded
        if len(excluded) < FEW:
            numbers, counts = np.unique(np.searchsorted(self.rows, self._first[excluded]), return_counts=True)
            few: NDArray[np.int64] = numbers[counts == self._sizes[numbers]].astype(np.int64)
            return few
        excluded_sizes = np.bincount(self._first[excluded], minlength=len(self._first))[self.rows]
        return np.flatnonzero(excluded_sizes == self._sizes)

    def rows_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of each numbered vector; MISSING stays MISSING."""
        if not self._repeated:
            return numbers
        return np.where(numbers == MISSING, MISSING, self.rows[numbers])

    def expand(
        self, scores: NDArray[np.float32], numbers: NDArray[np.int64], k: int, excluded: NDArray[np.int64] | None
    ) -> Neighbours:
        """The k best rows for each query. scores, numbers: (q, m) of distinct vectors that are not excluded."""
        if not self._repeated or (self._sizes[numbers] == 1).all():
            return best_first(scores, self.rows_of(numbers), k)
        excluded_mask = None if excluded is None else mask_of_rows(excluded, len(self._first))
        out_scores = np.full((len(numbers), k), -np.inf, np.float32)
        out_rows = np.full((len(numbers), k), MISSING, np.int64)
        for query, (query_scores, query_numbers) in enumerate(zip(scores, numbers, strict=True)):
            found = query_numbers != MISSING
            groups = [self._copies(number, excluded_mask)[:k] for number in query_numbers[found]]
            repeated = np.repeat(query_scores[found], [len(group) for group in groups])
            best = best_first(repeated[None], np.concatenate([*groups, np.empty(0, np.int64)])[None], k)
            out_scores[query, : best.rows.shape[1]] = best.scores[0]
            out_rows[query, : best.rows.shape[1]] = best.rows[0]
        return Neighbours(out_scores, out_rows)

    def _copies(self, number: int, excluded_mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self._members[self._ends[number] - self._sizes[number] : self._ends[number]]
        return rows if excluded_mask is None else rows[~excluded_mask[rows]]
