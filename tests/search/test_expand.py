"""Query expansion: the mean of a query and its nearest volumes decides the order, the query itself the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medret.errors import UsageError
from medret.search import open_snapshot, open_snapshots
from medret.search.options import SearchOptions


def by_definition(vectors: dict[str, Any], query: str, expand: int, hidden: set[str]) -> list[tuple[str, float]]:
    """Volumes in the order of the expanded query, with the cosines of the query."""
    names = [name for name in sorted(vectors) if name not in hidden]
    wide = {name: vectors[name].astype(np.float64) for name in vectors}
    cosines = {name: float(wide[name] @ wide[query]) for name in names}
    nearest = sorted((name for name in names if name != query), key=lambda name: (-cosines[name], name))[:expand]
    mean = wide[query] + sum(max(cosines[name], 0.0) * wide[name] for name in nearest)
    mean /= np.linalg.norm(mean)
    order = sorted(names, key=lambda name: (-np.float32(wide[name] @ np.float32(mean).astype(np.float64)), name))
    return [(name, cosines[name]) for name in order]


@pytest.mark.parametrize("expand", [1, 2, 5, 100])
@pytest.mark.parametrize("exclude", ["none", "self", "subject"])
def test_order_and_scores_follow_from_the_definition(made_store: Any, expand: int, exclude: str) -> None:
    snapshot = open_snapshot(made_store.uri)
    vectors = dict(zip(made_store.ids, made_store.vectors["mean"], strict=True))
    labels = snapshot.labels()
    subjects = dict(zip(labels["volume_id"].to_pylist(), labels["subject"].to_pylist(), strict=True))
    moved = 0
    for query in made_store.ids[::3]:
        same = {name for name in made_store.ids if subjects[name] == subjects[query]}
        hidden = {"none": set[str](), "self": {query}, "subject": same}[exclude]
        expected = by_definition(vectors, query, expand, hidden)
        hits = snapshot.search(query, 12, index="exact", exclude=exclude, expand=expand)
        assert [hit.volume_id for hit in hits] == [name for name, _ in expected[:12]]
        assert [hit.score for hit in hits] == pytest.approx([min(score, 1.0) for _, score in expected[:12]], abs=1e-6)
        plain = snapshot.search(query, 12, index="exact", exclude=exclude)
        moved += [hit.volume_id for hit in hits] != [hit.volume_id for hit in plain]
    assert moved, "the mean finds another order than the query"


@pytest.mark.parametrize("index", ["hnsw", "lsh"])
def test_an_approximate_index_expands_too(made_store: Any, index: str) -> None:
    snapshot = open_snapshot(made_store.uri)
    hits = snapshot.search(made_store.ids[0], 10, index=index, expand=2)
    exact = snapshot.search(made_store.ids[0], 10, index="exact", expand=2)
    assert len({hit.volume_id for hit in hits} & {hit.volume_id for hit in exact}) >= 8


def test_several_stores_expand_as_one(made_store: Any, store_maker: Any, volume_maker: Any, tmp_path: Any) -> None:
    first, second = (
        store_maker(tmp_path / name, part) for name, part in zip("ab", _halves(volume_maker(20)), strict=True)
    )
    whole = store_maker(tmp_path / "c", volume_maker(20))
    both = open_snapshots([first.uri, second.uri]).search(first.ids[0], 8, index="exact", expand=3)
    alone = open_snapshot(whole.uri).search(first.ids[0], 8, index="exact", expand=3)
    assert [(hit.volume_id, hit.score) for hit in both] == [(hit.volume_id, hit.score) for hit in alone]


def _halves(volumes: Any) -> tuple[Any, Any]:
    return volumes[::2], volumes[1::2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expand": -1}, "expand is -1, expected a whole number of volumes, 0 to 100"),
        ({"expand": True}, "expand is True"),
        ({"expand": 101}, "expand is 101"),
        ({"expand": 2, "mode": "late"}, "mode 'late' does not search by one vector"),
        ({"expand": 2, "slices": "3:9"}, "mode 'late' does not search by one vector"),
        ({"expand": 2, "model": ["a", "b"]}, "fuse 'concat' adds up: take fuse 'rrf'"),
    ],
)
def test_what_cannot_be_expanded_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchOptions(**options)


def test_the_words_say_that_the_order_is_another() -> None:
    assert "averaged with the 2 volumes nearest to it" in SearchOptions(expand=2).score_words()
    assert SearchOptions(expand=2, model=["a", "b"], fuse="rrf").expand == 2
