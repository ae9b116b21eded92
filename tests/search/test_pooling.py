from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret.embeddings import Slices, plane_codes
from medret.search import open_snapshot
from medret.search.index_search import ScoredRow
from medret.search.modes import COPIES_MAX, places, pooled
from medret.search.options import MAX, SUM, VOTE


def _found(*scores: float) -> list[ScoredRow]:
    return [ScoredRow(score, f"volume-{number:03d}", 0, number) for number, score in enumerate(scores)]


@pytest.mark.parametrize("seed", range(10))
def test_what_is_given_does_not_depend_on_names(seed: int) -> None:
    """C1: of equally near slices those first in the alphabet got every place."""
    rng = np.random.default_rng(seed)
    for per_slice in (1, 3, 20):
        scores = sorted(rng.choice(np.linspace(-1, 1, 6), rng.integers(1, 40)).tolist(), reverse=True)
        given = places(_found(*scores), per_slice, depth=100)
        shares: dict[float, set[float]] = defaultdict(set)
        for share, one in given:
            shares[one.score].add(share)
        assert all(len(own) == 1 for own in shares.values())  # equally near, equal shares
        assert sum(share for share, _ in given) == pytest.approx(min(per_slice, len(scores)))
        assert {one.score for _, one in given} == set(scores[:per_slice])


def test_more_equal_slices_than_can_be_found_get_nothing() -> None:
    found = _found(0.9, *[0.8] * 9)
    assert [one.score for _, one in places(found, 3, depth=10)] == [0.9]
    assert len(places(found, 3, depth=11)) == 10  # all that there are


def test_pooled_scores_are_sums_of_shares() -> None:
    first, second = _found(0.8, 0.8)
    given = [[(0.5, first), (0.5, second)], [(1.0, second)]]
    weights = np.array([0.25, 0.75])
    assert [(one.volume_id, one.score) for one in pooled(given, weights, 9, VOTE, 1)] == [
        ("volume-001", 0.875),
        ("volume-000", 0.125),
    ]
    assert [one.score for one in pooled(given, weights, 9, SUM, 1)] == pytest.approx([0.7, 0.1])
    assert [one.volume_id for one in pooled(given, weights, 1, MAX, 1)] == ["volume-001"]  # equal: the larger sum


def _with_empty_slices(count: int, empty: int, seed: int = 0) -> tuple[Slices, ...]:
    """Volumes of three kinds, the kind in no order of the names; `empty` of their 8 slices are the same in all."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((3, 32))
    blank = rng.standard_normal(32)
    volumes = []
    for number in range(count):
        raw = kinds[number % 3] + 0.4 * rng.standard_normal((8, 32))
        raw[:empty] = blank
        unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
        relative = np.linspace(0, 1, 8, dtype=np.float32)
        volume_id = f"kind{number % 3}/{number:03d}"
        at = np.arange(8, dtype=np.int32)
        planes, ones = plane_codes(["axial"] * 8), np.ones(8, np.float32)
        volumes.append(Slices(unit, planes, at, relative, relative, ones, volume_id=volume_id))
    return tuple(sorted(volumes, key=lambda volume: volume.volume_id))


@pytest.mark.parametrize("mode", ["vote", "max", "sum", "late"])
@pytest.mark.parametrize("kind", ["hnsw", "exact"])
def test_empty_slices_do_not_decide(tmp_path: Path, store_maker: Callable[..., Any], mode: str, kind: str) -> None:
    """C1: most of a volume's slices are empty, as they are where the field of view is larger than the body."""
    made = store_maker(tmp_path, _with_empty_slices(60, 5), aggregations=("mean",))
    hits = open_snapshot(made.uri).search_many(made.ids, 10, mode=mode, index=kind, exclude="self")
    assert all(own[0].volume_id.split("/")[0] == asked.split("/")[0] for asked, own in zip(made.ids, hits, strict=True))


@pytest.mark.parametrize("copies", [3, COPIES_MAX + 30])
def test_a_query_of_nothing_but_copies_still_finds(
    tmp_path: Path, store_maker: Callable[..., Any], copies: int
) -> None:
    made = store_maker(tmp_path, _with_empty_slices(copies, 8), aggregations=("mean",))
    found = open_snapshot(made.uri).search(made.ids[0], 5, mode="vote", per_slice=4)
    assert len(found) == min(5, copies)
    assert len({hit.score for hit in found}) == 1
