"""Explanations against the scores that searches give, and against definitions in plain numpy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret import NotFoundError, UsageError, open_snapshot
from medret.cli import main
from medret.embeddings import plane_codes
from medret.index.centre import fit_centre
from medret.recipe import SliceRecipe
from tests.search.conftest import make_store, recipe_of, synthetic_volumes

HITS = range(0, 12, 3)


@pytest.fixture(scope="module")
def centred_store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Indices that hold directions from their centre."""

    def centre(_: str | None, vectors: Any, volumes: int) -> Any:
        return fit_centre([vectors.astype(np.float64).sum(axis=0)], len(vectors), volumes)

    return make_store(
        tmp_path_factory.mktemp("explain") / "store",
        synthetic_volumes(12),
        aggregations=("mean", "gaussian:0.3,0.2"),
        centre=centre,
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("same_plane", [False, True])
def test_shares_sum_to_the_score_of_late_interaction(made_store: Any, symmetric: bool, same_plane: bool) -> None:
    snapshot = open_snapshot(made_store.uri)
    options: dict[str, Any] = {"mode": "late", "symmetric": symmetric, "same_plane": same_plane, "index": "exact"}
    scores = {hit.volume_id: hit.score for hit in snapshot.search(made_store.ids[1], 100, **options)}
    for number in HITS:
        explanation = snapshot.explain(made_store.ids[1], made_store.ids[number], **options)
        assert explanation.shares.sum() == pytest.approx(scores[made_store.ids[number]], abs=1e-6)
        assert explanation.score == pytest.approx(scores[made_store.ids[number]], abs=1e-6)
        if not symmetric:
            assert ((explanation.shares != 0).sum(axis=1) == 1).all()


def test_max_is_the_best_pair_alone(made_store: Any) -> None:
    snapshot = open_snapshot(made_store.uri)
    scores = {hit.volume_id: hit.score for hit in snapshot.search(made_store.ids[1], 5, mode="max", index="exact")}
    for volume_id, score in scores.items():
        explanation = snapshot.explain(made_store.ids[1], volume_id, mode="max")
        (pair,) = explanation.pairs
        assert min(pair.share, 1.0) == pytest.approx(score, abs=1e-6)  # float16 lengths may exceed 1 by a little
        assert explanation.cosines.max() == pytest.approx(pair.cosine)


@pytest.mark.parametrize("aggregation", ["mean", "gaussian:0.3,0.2"])
def test_shares_sum_to_the_cosine_of_volume_vectors(centred_store: Any, aggregation: str) -> None:
    snapshot = open_snapshot(centred_store.uri)
    options: dict[str, Any] = {"mode": "volume", "aggregation": aggregation, "index": "exact"}
    scores = {hit.volume_id: hit.score for hit in snapshot.search(centred_store.ids[1], 100, **options)}
    for number in HITS:
        explanation = snapshot.explain(centred_store.ids[1], centred_store.ids[number], **options)
        assert explanation.score == pytest.approx(scores[centred_store.ids[number]], abs=1e-6)
        assert explanation.shares.sum() == pytest.approx(explanation.score, abs=2e-3)


@pytest.fixture(scope="module")
def store_of_two_planes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Embedded in the order of the recipe's planes, sagittal slices first; indices have them by the planes' names."""
    planes = plane_codes(["sagittal"] * 4 + ["axial"] * 2)
    return make_store(
        tmp_path_factory.mktemp("planes") / "store",
        tuple(replace(volume, planes=planes) for volume in synthetic_volumes(12)),
        aggregations=("uniform:2", "random:3"),
        recipe=replace(recipe_of(), slices=SliceRecipe(planes=("sagittal", "axial"))),
    )


@pytest.mark.parametrize("aggregation", ["uniform:2", "random:3"])
def test_shares_are_of_the_slices_that_were_aggregated(store_of_two_planes: Any, aggregation: str) -> None:
    snapshot, ids = open_snapshot(store_of_two_planes.uri), store_of_two_planes.ids
    for number in HITS:
        explanation = snapshot.explain(ids[1], ids[number], mode="volume", aggregation=aggregation, index="exact")
        assert explanation.shares.sum() == pytest.approx(explanation.score, abs=2e-3)
        assert np.count_nonzero(np.abs(explanation.shares).sum(axis=0)) == int(aggregation[-1])


def test_a_slice_outside_a_narrow_gaussian_gives_nothing(centred_store: Any) -> None:
    explanation = open_snapshot(centred_store.uri).explain(
        centred_store.ids[0], centred_store.ids[3], mode="volume", aggregation="gaussian:0.3,0.2"
    )
    by_slice = np.abs(explanation.shares).sum(axis=1)
    assert by_slice[-1] < 0.05 * by_slice.max()


def test_what_cannot_be_explained_is_said(made_store: Any) -> None:
    snapshot = open_snapshot(made_store.uri)
    one, other = made_store.ids[:2]
    with pytest.raises(UsageError, match=r"vote.*volume, late, max"):
        snapshot.explain(one, other, mode="vote")
    with pytest.raises(UsageError, match="no mean of slices"):
        snapshot.explain(one, other, mode="volume", aggregation="max")
    with pytest.raises(NotFoundError, match=r"nowhere\.nii"):
        snapshot.explain(one, "nowhere.nii")
    with pytest.raises(UsageError, match="one model and one aggregation"):
        snapshot.explain(one, other, aggregation=["mean", "max"])


@pytest.mark.parametrize("mode", ["volume", "late", "max"])
def test_a_volume_vector_is_explained_as_it_is_searched_with(centred_store: Any, mode: str) -> None:
    snapshot = open_snapshot(centred_store.uri)
    query = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    options: dict[str, Any] = {"mode": mode, "aggregation": "mean", "index": "exact"}
    for hit in snapshot.search(query, 4, **options):
        explanation = snapshot.explain(query, hit.volume_id, **options)
        assert explanation.score == pytest.approx(hit.score, abs=1e-6)
        assert explanation.shares.sum() == pytest.approx(hit.score, abs=2e-3)
        assert {pair.query for pair in explanation.pairs} == {None}


def test_the_command_prints_writes_and_gives_json(
    made_store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = made_store.ids[:2]
    assert main(["explain", made_store.uri, one, other, "--html", str(tmp_path / "why.html")]) == 0
    assert "slices that gave most" in capsys.readouterr().out
    page = (tmp_path / "why.html").read_text()
    assert "Slice against slice" in page
    assert "<script" not in page
    assert main(["explain", made_store.uri, one, other, "--mode", "volume", "--aggregation", "mean", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert np.array(document["shares"]).sum() == pytest.approx(document["score"], abs=2e-3)
    assert np.array(document["cosines"]).shape == (len(document["query_slices"]), len(document["hit_slices"]))
    assert main(["explain", made_store.uri, one, "nowhere"]) == 2


@pytest.mark.parametrize("aggregation", ["uniform:2", "random:3"])
def test_a_plan_that_keeps_all_slices_changes_no_volume_vector(store_of_two_planes: Any, aggregation: str) -> None:
    snapshot = open_snapshot(store_of_two_planes.uri)
    for name in store_of_two_planes.ids[:4]:
        whole = snapshot.resolve(name, aggregation=aggregation).volume
        chosen = snapshot.resolve(name, aggregation=aggregation, query_slices="all").volume
        np.testing.assert_allclose(chosen, whole, atol=2e-3)
