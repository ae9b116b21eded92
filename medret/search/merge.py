"""Putting together what the shards of an index found. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest


@dataclass(frozen=True)
class Found:
    """One vector that was found. score: cosine. shard, row: where it lies in its index."""

    score: float
    volume_id: str
    shard: int
    row: int


def _rank(found: Found) -> tuple[float, str, int, int]:
    return (-found.score, found.volume_id, found.shard, found.row)


def merge_shards(found: Iterable[Found], k: int) -> list[Found]:
    """The k best of all shards, best first; equal scores in the order of volume_id, then of place."""
    return nsmallest(k, found, key=_rank)


def merge_slices(found_by_slice: Sequence[Iterable[Found]], k: int) -> list[tuple[Found, int]]:
    """The k best distinct vectors any slice of the query found, with the best score and that slice's number."""
    best: dict[tuple[int, int], tuple[Found, int]] = {}
    for number, found in enumerate(found_by_slice):
        for one in found:
            held = best.get((one.shard, one.row))
            if held is None or one.score > held[0].score:
                best[one.shard, one.row] = (one, number)
    return nsmallest(k, best.values(), key=lambda pair: _rank(pair[0]))
