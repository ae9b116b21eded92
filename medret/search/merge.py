"""Putting together what the shards of an index found. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest


@dataclass(frozen=True)
class ScoredRow:
    """One vector that was found. score: cosine. shard, row: where it lies in its index."""

    score: float
    volume_id: str
    shard: int
    row: int


def _rank(found: ScoredRow) -> tuple[float, str, int, int]:
    return (-found.score, found.volume_id, found.shard, found.row)


def merge_shards(found: Iterable[ScoredRow], k: int) -> list[ScoredRow]:
    """The k best of all shards, best first; equal scores in the order of volume_id, then of place."""
    return nsmallest(k, found, key=_rank)


def merge_slices(found_by_slice: Sequence[Iterable[ScoredRow]], k: int) -> list[tuple[ScoredRow, int]]:
    """The k best distinct vectors any slice of the query found, with the best score and that slice's number."""
    best: dict[tuple[int, int], tuple[ScoredRow, int]] = {}
    for number, found in enumerate(found_by_slice):
        for one in found:
            held = best.get((one.shard, one.row))
            if held is None or one.score > held[0].score:
                best[one.shard, one.row] = (one, number)
    return nsmallest(k, best.values(), key=lambda pair: _rank(pair[0]))
