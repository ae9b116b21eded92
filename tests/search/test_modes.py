"""Modes, exclusions, filters and ensembles against what the definitions say, computed the long way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.search import Snapshot, open_snapshot

KINDS = ("hnsw", "lsh", "exact")
MODES = ("volume", "vote", "max", "sum", "late")


@pytest.fixture(scope="module")
def snapshot(made_store: Any) -> Snapshot:
    return open_snapshot(made_store.uri)


def _slices(volume: Any) -> Any:
    return volume.vectors.astype(np.float64)


def _late(query: Any, volume: Any, weights: Any = None) -> float:
    planes = np.array(query.planes)[:, None] == np.array(volume.planes)[None]
    best = np.where(planes, _slices(query) @ _slices(volume).T, -np.inf).max(axis=1)
    return float(np.average(best, weights=weights))


def _pools(query: Any, volumes: Any, per_slice: int, weights: Any) -> dict[str, dict[str, float]]:
    """Scores of vote, max and sum by volume_id, from the plain definition."""
    pools: dict[str, dict[str, float]] = {"vote": defaultdict(float), "max": {}, "sum": defaultdict(float)}
    ids = [volume.volume_id for volume in volumes for _ in volume.vectors]
    everything = np.concatenate([_slices(volume) for volume in volumes])
    for vector, weight in zip(_slices(query), weights, strict=True):
        cosines = everything @ vector
        for place in np.argsort(-cosines)[:per_slice]:
            pools["vote"][ids[place]] += weight / per_slice
            pools["sum"][ids[place]] += weight * cosines[place] / per_slice
            pools["max"][ids[place]] = max(pools["max"].get(ids[place], -1), cosines[place])
    return pools


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_modes_are_their_definitions(made_store: Any, snapshot: Snapshot, kind: str, weighted: bool) -> None:
    query = made_store.volumes[13]
    weights = np.full(6, 1 / 6)
    options: dict[str, Any] = {"index": kind, "per_slice": 7}
    if weighted:
        weights = parse_aggregation("gaussian:0.3,0.2").weights(query.relative_position, "")
        options["query_weights"] = "gaussian:0.3,0.2"
    pools = _pools(query, made_store.volumes, 7, weights)
    for mode, expected in pools.items():
        hits = snapshot.search(query.volume_id, 100, mode=mode, **options)
        assert {hit.volume_id: pytest.approx(hit.score, abs=1e-3) for hit in hits} == expected
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert hits[0].volume_id == query.volume_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_late_is_its_definition(made_store: Any, snapshot: Snapshot, kind: str, weighted: bool) -> None:
    query = made_store.volumes[4]
    weights = parse_aggregation("gaussian:0.3,0.2").weights(query.relative_position, "") if weighted else None
    options: dict[str, Any] = {"query_weights": "gaussian:0.3,0.2"} if weighted else {}
    expected = {volume.volume_id: _late(query, volume, weights) for volume in made_store.volumes}
    hits = snapshot.search(query.volume_id, 30, mode="late", index=kind, **options)
    assert len(hits) == 30
    assert all(hit.score == pytest.approx(min(1, expected[hit.volume_id]), abs=1e-6) for hit in hits)
    assert [hit.volume_id for hit in hits] == sorted(expected, key=lambda one: (-np.float32(expected[one]), one))


def test_symmetric_late_is_the_mean_of_both_directions(made_store: Any, snapshot: Snapshot) -> None:
    query = made_store.volumes[4]
    for hit in snapshot.search(query.volume_id, 30, mode="late", index="exact", symmetric=True):
        other = made_store.volumes[made_store.ids.index(hit.volume_id)]
        assert hit.score == pytest.approx(min(1, (_late(query, other) + _late(other, query)) / 2), abs=1e-6)


def test_fewer_candidates_are_the_nearest(made_store: Any, snapshot: Snapshot) -> None:
    everything = snapshot.search(made_store.ids[3], 30, mode="late", index="hnsw")
    few = snapshot.search(made_store.ids[3], 4, mode="late", index="hnsw", candidates=8)
    assert [hit.volume_id for hit in few] == [hit.volume_id for hit in everything[:4]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_takes_no_place(made_store: Any, snapshot: Snapshot, mode: str, kind: str) -> None:
    """Exclusions and filters give what a store without those volumes would give."""
    queries = [snapshot.resolve(volume_id) for volume_id in made_store.ids[:5]]
    gone = [frozenset(made_store.ids[number : number + 9]) for number in range(5)]
    kept = "organ in ('Liver', 'Brain')"
    found = snapshot.rank(queries, 4, mode=mode, index=kind, excluded=gone, where=kept, per_slice=4, candidates=5)
    organs = dict(zip(made_store.ids, snapshot.labels()["organ"].to_pylist(), strict=True))
    for query, own, ranked in zip(queries, gone, found, strict=True):
        assert ranked
        assert all(one.volume_id not in own and organs[one.volume_id] != "Lung" for one in ranked)
        allowed = [v for v in made_store.volumes if v.volume_id not in own and organs[v.volume_id] != "Lung"]
        source = made_store.volumes[made_store.ids.index(query.label)]
        if mode in ("vote", "max", "sum"):
            pools = _pools(source, allowed, 4, np.full(6, 1 / 6))[mode]
            best = sorted(pools.values(), reverse=True)[:4]
            assert [one.score for one in ranked] == pytest.approx(best, abs=1e-4)
        if mode == "late" and kind == "exact":
            best = sorted((_late(source, volume) for volume in allowed), reverse=True)[:4]
            assert [one.score for one in ranked] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_every_volume_can_be_ranked(made_store: Any, snapshot: Snapshot, mode: str) -> None:
    (ranked,) = snapshot.rank([snapshot.resolve(made_store.ids[0])], 30, mode=mode)
    assert len({one.volume_id for one in ranked}) == len(ranked)
    assert len(ranked) == 30 or mode in ("vote", "max", "sum")


def test_large_sets_of_excluded_volumes(
    tmp_path: Path, store_maker: Callable[..., Any], volume_maker: Callable[..., Any]
) -> None:
    made = store_maker(tmp_path / "store", volume_maker(90, slices=2), per_shard=25)
    snapshot = open_snapshot(made.uri)
    queries = [snapshot.resolve(one) for one in made.ids[:4]]
    gone = [frozenset(made.ids[:50]), frozenset(made.ids[40:]), frozenset(made.ids[:50]), frozenset()]
    for kind in KINDS:
        found = snapshot.rank(queries, 90, index=kind, excluded=gone)
        assert [len(own) for own in found] == [40, 40, 40, 90]
        assert all(one.volume_id not in own for own, ranked in zip(gone, found, strict=True) for one in ranked)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_subject_is_left_out(made_store: Any, snapshot: Snapshot, kind: str) -> None:
    subjects = dict(zip(made_store.ids, snapshot.labels()["subject"].to_pylist(), strict=True))
    for mode in MODES:
        for query, hits in zip(
            made_store.ids,
            snapshot.search_many(made_store.ids, 30, index=kind, mode=mode, exclude="subject"),
            strict=True,
        ):
            assert all(subjects[hit.volume_id] != subjects[query] for hit in hits)
            assert len(hits) == 28 or mode in ("vote", "max", "sum")


def test_a_value_that_is_unknown_leaves_out_the_query_alone(made_store: Any, snapshot: Snapshot) -> None:
    hits = snapshot.search(made_store.ids[0], 30, exclude="body_region")
    assert len(hits) == 29
    assert made_store.ids[0] not in {hit.volume_id for hit in hits}


def test_a_query_from_elsewhere_has_no_subject(snapshot: Snapshot) -> None:
    with pytest.raises(UsageError, match=r"so its subject is not known .* filter, such as \"subject <> 'VALUE'\""):
        snapshot.search(np.ones(32), exclude="subject")


def test_filters_in_every_mode(made_store: Any, snapshot: Snapshot) -> None:
    for mode in (*MODES, "slice"):
        hits = snapshot.search(made_store.ids[0], 10, mode=mode, where="organ = 'Lung' and source = 'made up'")
        assert hits
        assert {hit.labels["organ"] for hit in hits} == {"Lung"}
        assert snapshot.search(made_store.ids[0], 10, mode=mode, where="organ = 'Tail'") == []
    with pytest.raises(UsageError, match="no column 'site'; the snapshot has volume_id, subject"):
        snapshot.search(made_store.ids[0], where="site = 'A'")


# --- the query's own slices ------------------------------------------------------------------------------------


def test_a_slice_plan_of_the_query(made_store: Any, snapshot: Snapshot) -> None:
    query = snapshot.resolve(made_store.ids[2], query_slices="uniform:1")
    assert query.slices.plane_names == ["axial", "sagittal"]
    assert query.slices.slice_indices is not None
    assert query.slices.slice_indices.tolist() == [30, 40]
    mean = made_store.volumes[2].vectors[[2, 3]].astype(np.float64).sum(axis=0)
    assert query.volume == pytest.approx(mean / np.linalg.norm(mean), abs=1e-3)
    with pytest.raises(UsageError, match="slice plan 'some' is not one of"):
        snapshot.resolve(made_store.ids[2], query_slices="some")


def test_weights_of_the_query(snapshot: Snapshot, made_store: Any) -> None:
    query = snapshot.resolve(made_store.ids[2], query_weights="gaussian:0,0.1")
    assert query.slice_weights()[0] > 0.8
    assert query.slice_weights().sum() == pytest.approx(1)
    array = snapshot.resolve(np.eye(3, 32), query_weights="gaussian:1,0.1")
    assert array.slice_weights()[2] > 0.99
    assert snapshot.resolve(made_store.ids[2], query_weights="uniform").slice_weights() == pytest.approx(
        np.full(6, 1 / 6)
    )
    with pytest.raises(UsageError, match="query weights 'some' are not understood; expected uniform or gaussian"):
        snapshot.resolve(made_store.ids[2], query_weights="some")


# --- ensembles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_concatenation_is_the_weighted_sum_of_cosines(made_store: Any, snapshot: Snapshot, kind: str) -> None:
    parts = {name: made_store.vectors[name].astype(np.float64) for name in ("mean", "max")}
    wide = np.concatenate([0.7**0.5 * parts["mean"], 0.3**0.5 * parts["max"]], axis=1)
    for number in (0, 7, 20):
        expected = wide @ wide[number]
        hits = snapshot.search(
            made_store.ids[number], 6, aggregation={"mean": 0.7, "max": 0.3}, index=kind, candidates=8
        )
        best = np.argsort(-expected)[:6]
        assert [hit.volume_id for hit in hits] == [made_store.ids[place] for place in best]
        assert [hit.score for hit in hits] == pytest.approx(np.minimum(expected[best], 1), abs=1e-5)


def test_reciprocal_ranks(made_store: Any, snapshot: Snapshot) -> None:
    rankings = [
        [hit.volume_id for hit in snapshot.search(made_store.ids[5], 30, aggregation=name, index="exact")]
        for name in ("mean", "max")
    ]
    expected = {
        one: sum(1 / (60 + ranking.index(one) + 1) for ranking in rankings) / (2 / 61) for one in made_store.ids
    }
    hits = snapshot.search(made_store.ids[5], 30, aggregation=["mean", "max"], fuse="rrf", index="exact")
    assert {hit.volume_id: hit.score for hit in hits} == {one: pytest.approx(score) for one, score in expected.items()}
    assert hits[0].score == 1
    assert hits[0].slices is not None


def test_ensembles_that_cannot_be(made_store: Any, snapshot: Snapshot) -> None:
    for options, message in (
        ({"fuse": "mean"}, "fuse 'mean' is not available; there are concat, rrf"),
        ({"mode": "vote"}, "fuse 'concat' adds up cosines, which mode 'vote' has none of: take fuse 'rrf'"),
        ({"mode": "slice"}, "mode 'slice' takes one model"),
        ({"aggregation": {"mean": 1, "max": 0}}, "weight of aggregation 'max' is 0, expected a number above 0"),
        ({"aggregation": []}, "no aggregation is given"),
        ({"model": ["synthetic-model", "other"]}, "model 'other' is not in snapshot"),
    ):
        given: dict[str, Any] = {"aggregation": ["mean", "max"], **options}
        with pytest.raises(UsageError, match=message):
            snapshot.search(made_store.ids[0], **given)
    late = snapshot.search(made_store.ids[0], 3, aggregation=["mean", "max"], mode="late")
    assert late[0].score == pytest.approx(1, abs=1e-3)
