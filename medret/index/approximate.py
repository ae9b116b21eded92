"""What HNSW and LSH share: candidates re-scored by the exact index, and rotations of vectors that need only a seed.

A FAISS index holds only the first of equal vectors. Archives repeat themselves: copies of files and, above all, empty
slices, which have the same vector in every volume. In an HNSW graph, copies of a vector that outnumber a node's links
are linked only to each other: a search that enters them cannot leave. In LSH they use up the candidates.

With many rows excluded (a filter), an approximate index finds mostly rows it must not return. It is asked for
proportionally more; where few rows are left, and for queries that still find too few (their neighbourhood was filtered
away), the remaining rows are scanned, which is exact.

Both turn vectors before they code them. A Gaussian matrix made orthogonal takes bits x bits x bits steps to make and
dim x bits numbers to store: seconds, and megabytes in each file, whatever the number of vectors. FAISS's Hadamard
rotation (three rounds of random signs and a Walsh-Hadamard transform) needs only a seed, so it is not stored.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index.exact import (
    MISSING,
    ExactIndex,
    Neighbours,
    best_first,
    mask_of_rows,
    no_neighbours,
    threads_for,
)

# (n, dim) queries and (n,) scores -> queries that find, in this index, what has about those scores around its `exact`
Walked = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]

# Allowed vectors are not spread evenly: ask for more than their share of all.
ASK_SLACK = 1.5
# The nearest as seen from another centre are among so many times k as seen from the own one: recall@10 by scans 0.77
# without, 0.987 with it, over synthetic stores whose centres are far apart.
WALKED_SLACK = 4
GUESSED = 0.7  # the score of neighbours, before any was found
FEW = 1024  # up to this many excluded rows are looked up one by one; beyond, all rows are counted


def first_equal(vectors: NDArray[np.float16]) -> NDArray[np.int32]:
    """(n,) int32: for each of (n, dim) vectors, the first row with the same bits (possibly its own)."""
    seen: dict[bytes, int] = {}
    rows = np.ascontiguousarray(vectors)
    firsts = (seen.setdefault(blake2b(vector, digest_size=16).digest(), row) for row, vector in enumerate(rows))
    return np.fromiter(firsts, np.int32, len(rows))


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
            filled = query_numbers != MISSING
            groups = [self._copies(number, excluded_mask)[:k] for number in query_numbers[filled]]
            repeated = np.repeat(query_scores[filled], [len(group) for group in groups])
            best = best_first(repeated[None], np.concatenate([*groups, np.empty(0, np.int64)])[None], k)
            out_scores[query, : best.rows.shape[1]] = best.scores[0]
            out_rows[query, : best.rows.shape[1]] = best.rows[0]
        return Neighbours(out_scores, out_rows)

    def _copies(self, number: int, excluded_mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self._members[self._ends[number] - self._sizes[number] : self._ends[number]]
        return rows if excluded_mask is None else rows[~excluded_mask[rows]]


class ApproximateIndex(ABC):
    """An opened approximate index. Its candidates are re-scored, so all kinds report the same cosines.

    walked: where `exact` holds vectors relative to another centre than this index: what to search this index with.
    """

    # The cost of a filtered search, in vectors scanned in the same time: per vector that the index is asked for, and
    # per vector that it holds. If fewer vectors than that are kept, they are scanned. bench/filter.py, one thread,
    # 50,000 synthetic vectors x 768, k = 10, milliseconds per query:
    #     kept       50 %   20 %   10 %    5 %    1 %   0.1 %
    #     scan        7.1    4.1    2.7    1.3    0.4    0.3
    #     HNSW        0.8    1.2    2.6    4.4   14.5    212
    #     LSH         1.7    2.6    3.4    4.7    7.0    0.2 (it falls back to the scan)
    # So both switch between 20 % and 10 % there; LSH, which loses recall on the way (0.96 at 10 %), somewhat earlier.
    cost_asked: float
    cost_held: float

    def __init__(self, index: Any, exact: ExactIndex, distinct: Distinct, walked: Walked | None = None) -> None:
        self._index = index
        self._total = int(index.ntotal)
        self._exact = exact
        self._distinct = distinct
        self._walked = walked

    @property
    def rows(self) -> int:
        """Vectors in the shard."""
        return self._exact.rows

    def search(self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None = None) -> Neighbours:
        """About the best min(k, rows) rows for each of (q, dim) unit queries, without the rows in `excluded`."""
        k = min(k, self.rows)
        if k <= 0 or not len(queries):
            return no_neighbours(len(queries))
        excluded_numbers = self._distinct.excluded_numbers(excluded)
        kept = self._total - (0 if excluded_numbers is None else len(excluded_numbers))
        if self._walked is None:
            numbers = self._candidates(queries, k, excluded_numbers, kept)
        else:
            numbers = self._around_another_centre(self._walked, queries, k, excluded_numbers, kept)
        if numbers is None:
            return self._exact.search(queries, k, excluded)
        scores = self._scores(queries, numbers)
        neighbours = self._distinct.expand(scores, numbers, k, excluded)
        if not (numbers == MISSING).any():
            return neighbours
        short = np.flatnonzero((numbers != MISSING).sum(axis=1) < min(k, kept))
        if len(short):
            scanned = self._exact.search(queries[short], neighbours.rows.shape[1], excluded)
            neighbours.scores[short, : scanned.scores.shape[1]] = scanned.scores
            neighbours.rows[short, : scanned.rows.shape[1]] = scanned.rows
        return neighbours

    def _around_another_centre(
        self, walked: Walked, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        """As `_candidates`. What to search with depends on how near the neighbours are: a first search tells it."""
        guess = np.full(len(queries), GUESSED, np.float32)
        numbers = self._candidates(walked(queries, guess), k, excluded, kept)
        if numbers is None:
            return None
        best = -np.sort(-self._scores(queries, numbers), axis=1)[:, :k]
        reached = np.where(np.isfinite(best), best, np.inf).min(axis=1, initial=np.inf)
        asked = min(WALKED_SLACK * k, self.rows)
        return self._candidates(walked(queries, np.where(np.isfinite(reached), reached, guess)), asked, excluded, kept)

    def _scores(self, queries: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact cosines of each of (q, dim) queries with its (q, m) numbered vectors."""
        return self._exact.scores(queries, self._distinct.rows_of(numbers))

    @abstractmethod
    def _candidates(
        self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None, kept: int
    ) -> NDArray[np.int64] | None:
        """(q, m) numbers of distinct vectors, m >= k, none of them in `excluded`, MISSING where there are fewer.

        excluded: numbers too. kept: how many vectors are not excluded. Returns None where a scan is faster.
        """

    def _widened(self, needed: int, kept: int, slack: float = ASK_SLACK) -> int | None:
        """How many nearest vectors to ask for, so that about `needed` of them are kept; None if a scan is faster."""
        total = self._total
        asked = math.ceil(slack * needed * total / max(kept, 1))
        walk = self.cost_asked * asked + self.cost_held * total
        return asked if walk < kept and asked < total else None

    def _first_allowed(
        self, numbers: NDArray[np.int64], excluded: NDArray[np.int64], count: int, least: int | None = None
    ) -> NDArray[np.int64]:
        """The first `count` numbers that are not excluded; none for a query with fewer than `least`, to be scanned.

        least: `count` if not given.
        """
        unusable = (numbers == MISSING) | mask_of_rows(excluded, self._total)[numbers]
        first = np.argsort(unusable, axis=1, kind="stable")[:, :count]
        allowed: NDArray[np.int64] = np.take_along_axis(numbers, first, axis=1)
        unusable = np.take_along_axis(unusable, first, axis=1)
        allowed[unusable] = MISSING
        allowed[(~unusable).sum(axis=1) < (count if least is None else least)] = MISSING
        return allowed


class Rotation:
    """Turns (n, dim) vectors into (n, bits) coordinates: those of as many rotations as `bits` needs, the last cut.

    Each rotation fills `dim` up to a power of two. Rotation number i has the seed i. The same on every machine, but
    for rounding.
    """

    def __init__(self, dim: int, bits: int) -> None:
        width = 1 << (dim - 1).bit_length()
        self._rotations = [_hadamard(dim, seed) for seed in range(-(-bits // width))]
        self._bits = bits

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The coordinates of (n, dim) vectors."""
        turned = [_apply(rotation, np.ascontiguousarray(vectors)) for rotation in self._rotations]
        cut: NDArray[np.float32] = np.ascontiguousarray(np.concatenate(turned, axis=1)[:, : self._bits])
        return cut


def turned(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, dim) vectors turned by a rotation that spreads every dimension over most others; lengths and angles stay.

    A Hadamard rotation needs a power of two: where dim is none, the largest below it turns the first dimensions, then
    the last. They overlap, because it is more than half of dim.
    """
    dim = vectors.shape[1]
    width = 1 << (dim.bit_length() - 1)
    result = np.array(vectors, np.float32)
    for seed, start in enumerate([0] if width == dim else [0, dim - width]):
        part = slice(start, start + width)
        result[:, part] = _apply(_hadamard(width, seed), np.ascontiguousarray(result[:, part]))
    return result


@cache
def _hadamard(dim: int, seed: int) -> faiss.HadamardRotation:
    return faiss.HadamardRotation(dim, seed)


def _apply(rotation: faiss.HadamardRotation, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    with threads_for(len(vectors)):
        made: NDArray[np.float32] = rotation.apply(vectors)
    return made
