"""Maps of an archive: compared with a full decomposition, and made of what the caller may see alone."""

from __future__ import annotations

import numpy as np
import pytest
from starlette.testclient import TestClient

from medret.search import Snapshots
from medret.serve import volumes
from medret.serve.volumes import drawn_map, evenly_chosen, principal_plane


def _clusters(count: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4, dim)) * np.array([[3.0], [2.0], [1.0], [0.5]])
    raw = centres[rng.integers(0, 4, count)] + rng.standard_normal((count, dim)) + 5
    unit: np.ndarray = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return unit.astype(np.float32)


@pytest.mark.parametrize(("count", "dim"), [(2, 16), (5, 64), (300, 3), (400, 96)])
def test_the_plane_is_that_of_a_full_decomposition(count: int, dim: int) -> None:
    vectors = _clusters(count, dim, count)
    xy, spread = principal_plane(vectors)
    directions = vectors - vectors.mean(axis=0)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions -= directions.mean(axis=0)
    left, sizes, _ = np.linalg.svd(directions.astype(np.float64), full_matrices=False)
    for axis in range(2):
        expected = left[:, axis] * sizes[axis]
        assert min(np.abs(xy[:, axis] - expected).max(), np.abs(xy[:, axis] + expected).max()) < 2e-3
        assert spread[axis] == pytest.approx(sizes[axis] ** 2 / np.sum(sizes**2), abs=1e-4)


def test_a_map_does_not_depend_on_the_order() -> None:
    vectors = _clusters(200, 48, 7)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_allclose(principal_plane(vectors[order])[0], principal_plane(vectors)[0][order], atol=1e-4)


@pytest.mark.parametrize("vectors", [np.empty((0, 8)), np.eye(1, 8), np.repeat(np.eye(1, 8), 5, axis=0)])
def test_volumes_without_differences_lie_at_one_place(vectors: np.ndarray) -> None:
    xy, spread = principal_plane(vectors.astype(np.float32))
    assert xy.shape == (len(vectors), 2)
    assert not xy.any()
    assert spread == (0.0, 0.0)


def test_the_choice_is_even_and_most_of_it_stays_when_the_archive_grows() -> None:
    ids = [f"site{number % 10}/{number:05d}.nii.gz" for number in range(20_000)]
    chosen = evenly_chosen(ids, 2000)
    assert len(set(chosen.tolist())) == 2000
    by_site = np.bincount(chosen % 10, minlength=10)
    assert by_site.min() > 150  # 200 each, if chosen at random
    grown = evenly_chosen([*ids, *(f"new/{number}" for number in range(2000))], 2000)
    assert len(set(grown.tolist()) & set(chosen.tolist())) > 1700
    assert evenly_chosen(ids[:5], 5).tolist() == [0, 1, 2, 3, 4]


def test_a_map_shows_each_volume_once_with_its_label(snapshots: Snapshots) -> None:
    drawn = drawn_map(snapshots, model=None, where=None, label="body_region")
    labels = {row["volume_id"]: row["body_region"] for row in snapshots.labels().to_pylist()}
    assert {point["volume_id"]: point["value"] for point in drawn["points"]} == labels
    assert len(drawn["points"]) == drawn["total"] == snapshots.volumes
    assert 0 < drawn["spread"][1] <= drawn["spread"][0] <= 1


def test_a_caller_with_a_filter_gets_the_map_of_its_own_volumes(snapshots: Snapshots) -> None:
    where = "modality = 'MRI'"
    restricted = drawn_map(snapshots.restricted(where), model=None, where=None, label=None)
    assert restricted["points"] == drawn_map(snapshots, model=None, where=where, label=None)["points"]
    assert restricted["total"] == len(restricted["points"]) == len(snapshots.restricted(where).labels())
    everything = {
        point["volume_id"]: (point["x"], point["y"])
        for point in drawn_map(snapshots, model=None, where=None, label=None)["points"]
    }
    assert any(everything[point["volume_id"]] != (point["x"], point["y"]) for point in restricted["points"])


def test_points_are_chosen_where_there_are_many(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "POINTS_MAX", 3)
    drawn = drawn_map(snapshots.restricted("not volume_id is null"), model=None, where=None, label=None)
    assert (len(drawn["points"]), drawn["total"]) == (3, snapshots.volumes)


def test_a_map_over_http(client: TestClient) -> None:
    assert client.get("/v1/map", params={"label": "organ"}).json()["label"] == "organ"
    for wrong in ({"label": "nothing"}, {"model": "nothing"}, {"where": "nothing"}):
        answer = client.get("/v1/map", params=wrong)
        assert answer.status_code == 422
        assert "nothing" in answer.json()["reason"]


def test_how_a_volume_is_shown_over_http(client: TestClient, snapshots: Snapshots) -> None:
    shown = client.get("/v1/view", params={"volume": "chest_ct/0.nii.gz"}).json()
    assert shown["hounsfield"] is True
    windows = {window["name"]: window for window in client.get("/v1/options").json()["ct_windows"]}
    preset = windows[shown["window"]["name"].removeprefix("hu:")]
    assert (shown["window"]["level"], shown["window"]["width"]) == (preset["level"], preset["width"])
    described = client.get("/v1/volumes/chest_ct/0.nii.gz").json()
    assert shown["shape"] == described["shape"]
    assert shown["spacing_mm"] == pytest.approx(described["spacing_mm"])
    assert client.get("/v1/view", params={"volume": "no/such.nii.gz"}).status_code == 404
