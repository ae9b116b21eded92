"""Every volume of a store asks for all others: in every mode, with few hits and with all, under every exclusion.

What a hit's slices match depends on the query and the hit alone, so each pair is matched once and kept. All pairs are
matched. Modes and counts are walked in full where nothing is excluded, with all hits as far as their ranks. Exclusions
and filters narrow what may be found by masks, so a third of the volumes asks under each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

import medret.search.answer
from medret.evaluate.duplicates import find_duplicates
from medret.search import Hit, Snapshot
from medret.search.index_search import ScoredRow
from medret.search.options import MODES, SLICE, VOLUME

FEW = 10
# In these modes nothing is more like a volume than itself; by votes, a volume of more slices may be.
SELF_FIRST = ("volume", "max", "late", "slice")
EXHAUSTIVE = ("volume", "late")
ROUNDING = 1e-4  # more than float16 vectors shift a cosine; on the way to them, processors round in different ways
COPY = 1e-3  # a cosine of float16 vectors of one image differs from 1 by less

Labels = Mapping[str, Mapping[str, Any]]
Ranked = Sequence[Hit | ScoredRow]


def walk(snapshot: Snapshot, excludes: Sequence[str], filters: Mapping[str, tuple[str, set[str]]]) -> None:
    """Fails where a search does, or what it returns cannot be. filters: text -> the column, and the values it keeps."""
    labels: Labels = {row["volume_id"]: row for row in snapshot.labels().to_pylist()}
    asking = list(labels)
    with pytest.MonkeyPatch.context() as patch:
        matched = _matched_once(patch)
        for mode, k, exclude, askers, found in _searches(snapshot, asking, labels, ("none", "self", *excludes)):
            for asked, hits in zip(askers, found, strict=True):
                _check(hits, k, mode, labels.keys() - _left_out(labels, asked, exclude))
                assert exclude != "none" or mode not in SELF_FIRST or asked in _best(hits), (mode, k, asked)
        for mode in MODES:
            for text, (column, values) in filters.items():
                kept = {one for one, own in labels.items() if own[column] in values}
                assert kept, text
                askers = asking[::3]
                for asked, hits in zip(askers, snapshot.search_many(askers, FEW, mode=mode, where=text), strict=True):
                    _check(hits, FEW, mode, kept)
                    assert asked not in kept or mode not in SELF_FIRST or asked in _best(hits), (mode, text, asked)
        for mode in ("vote", "sum"):  # where each slice has one place, it is the volume's own
            for asked, hits in zip(asking, snapshot.search_many(asking, FEW, mode=mode, per_slice=1), strict=True):
                assert asked in _best(hits), (mode, asked)
        assert len(matched) == len(labels) ** 2  # each was matched with each
    _walk_parts(snapshot, asking)
    assert len(find_duplicates(snapshot).to_leave_out()) < len(asking)
    shown = [(one, snapshot.uri_of_query(one), snapshot.search(one, 2, mode="late")) for one in asking[:3]]
    assert "3 queries" in snapshot.pictures.page(shown)


def _walk_parts(snapshot: Snapshot, asking: Sequence[str]) -> None:
    """The lower half of each volume asks."""
    for asked in asking:
        positions = snapshot.resolve(asked).slices.slice_indices
        assert positions is not None
        first, last = int(positions[0]), int(positions[len(positions) // 2])
        found = snapshot.search(asked, 2, slices=f"{first}:{last}")
        # Of a volume with many copies, any two may come first, and are as like it as it is itself.
        assert asked in _best(found) or found[-1].score > 1 - COPY, (asked, first, last)
        assert found[0].slices is not None
        assert found[0].slices.query == (first, last)


def _searches(
    snapshot: Snapshot, asking: list[str], labels: Labels, excludes: Sequence[str]
) -> Iterator[tuple[str, int, str, list[str], Sequence[Ranked]]]:
    """Mode, how many hits, exclusion, the volumes that ask, and what each found.

    All ask where nothing is excluded; a third of them under each exclusion, another third under the next.
    """
    for number, exclude in enumerate(excludes):
        askers = asking if exclude == "none" else asking[number % 3 :: 3]
        queries = [snapshot.resolve(one) for one in askers]
        gone = [_left_out(labels, one, exclude) for one in askers]
        for mode in MODES:
            yield mode, FEW, exclude, askers, snapshot.search_many(askers, FEW, mode=mode, exclude=exclude)
            every = len(asking)
            if mode == SLICE or (mode, exclude) == (VOLUME, "none"):
                found: Sequence[Ranked] = snapshot.search_many(askers, every, mode=mode, exclude=exclude)
            else:
                found = snapshot.rank(queries, every, mode=mode, index="hnsw", excluded=gone)
            yield mode, every, exclude, askers, found


def _matched_once(patch: pytest.MonkeyPatch) -> dict[tuple[str, str], Any]:
    match = medret.search.answer._match
    known: dict[tuple[str, str], Any] = {}

    def matched(corpus: Any, query: Any, volume: tuple[str, int], stored: Any) -> Any:
        key = (query.label, volume[0])
        if key not in known:
            known[key] = match(corpus, query, volume, stored)
        return known[key]

    patch.setattr(medret.search.answer, "_match", matched)
    return known


def _left_out(labels: Labels, asked: str, exclude: str) -> frozenset[str]:
    if exclude in ("none", "self"):
        return frozenset([asked] if exclude == "self" else [])
    value = labels[asked][exclude]
    return frozenset([asked, *(one for one, own in labels.items() if value is not None and own[exclude] == value)])


def _best(hits: Ranked) -> set[str]:
    """The volumes with the best score: copies of one volume are equally near."""
    return {hit.volume_id for hit in hits if hit.score >= hits[0].score - ROUNDING}


def _check(hits: Ranked, k: int, mode: str, kept: set[str]) -> None:
    assert {hit.volume_id for hit in hits} <= kept
    assert all(one.score >= other.score for one, other in pairwise(hits))
    assert len(hits) == min(k, len(kept)) if mode in EXHAUSTIVE else len(hits) <= k
    assert mode == SLICE or len({hit.volume_id for hit in hits}) == len(hits)
    for rank, hit in enumerate(hits, start=1):
        if isinstance(hit, Hit):
            assert hit.rank == rank
            assert hit.slices is not None
            assert 0 <= hit.slices.hit[0] <= hit.slices.hit[1]
            assert hit.score <= 1
