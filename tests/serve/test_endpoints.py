"""The endpoints answer what searches and tables say."""

from __future__ import annotations

import io
import json
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from medret.search import Snapshots
from tests.serve.conftest import Served

IDS = [f"{name}.nii.gz" for name in ("chest_ct/0", "chest_ct/1", "chest_ct/2", "head_mri/0", "head_mri/1")]


def test_the_snapshot_is_described(client: TestClient, snapshots: Snapshots) -> None:
    answer = client.get("/v1/snapshot").json()
    assert answer["volumes"] == snapshots.volumes == 7
    assert answer["snapshots"] == list(snapshots.manifests)
    assert [model["name"] for model in answer["models"]] == list(snapshots.models)
    assert answer["indices"] == ["exact", "hnsw", "lsh"]


@pytest.mark.parametrize("options", [{}, {"k": 3, "mode": "late"}, {"index": "exact", "where": "modality = 'MRI'"}])
def test_a_search_finds_what_the_snapshot_finds(
    client: TestClient, snapshots: Snapshots, options: dict[str, object]
) -> None:
    answer = client.post("/v1/search", json={"volume": IDS[0], **options}).json()
    expected = snapshots.search(IDS[0], **options)  # type: ignore[arg-type]
    assert answer["hits"] == json.loads(json.dumps([hit.to_json() for hit in expected]))


def test_vectors_are_searched_with(client: TestClient, snapshots: Snapshots) -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    for name, query in (("vector", vectors[0]), ("vectors", vectors)):
        answer = client.post("/v1/search", json={name: query.tolist(), "mode": "vote"}).json()
        expected = snapshots.search(query, mode="vote")
        assert [hit["volume_id"] for hit in answer["hits"]] == [hit.volume_id for hit in expected], name


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "no query"),
        ({"volume": IDS[0], "vector": [1.0]}, "volume and vector"),
        ({"volume": IDS[0], "color": "red"}, "color"),
        ({"volume": IDS[0], "k": 0}, "k"),
        ({"volume": IDS[0], "where": "organ ="}, "filter"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, "different lengths"),
    ],
)
def test_a_wrong_search_is_explained(client: TestClient, body: dict[str, object], words: str) -> None:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["reason"]


def test_volumes_are_listed_page_by_page(client: TestClient) -> None:
    seen, after = [], None
    while True:
        page = client.get("/v1/volumes", params={"limit": 2} | ({"after": after} if after else {})).json()
        assert page["total"] == 7
        seen += [row["volume_id"] for row in page["volumes"]]
        after = page["next"]
        if after is None:
            break
    assert seen == sorted(seen)
    assert len(seen) == 7
    listed = client.get("/v1/volumes", params={"where": "modality = 'CT'", "facets": True}).json()
    assert listed["total"] == 3
    assert listed["facets"]["organ"] == [{"value": "Lung", "count": 3}]


def test_a_volume_is_described(client: TestClient) -> None:
    answer = client.get(f"/v1/volumes/{quote(IDS[0])}").json()
    assert answer["labels"]["organ"] == "Lung"
    assert set(answer["planes"]) == {"axial"}
    assert client.get("/v1/volumes/chest_ct/9.nii.gz").status_code == 404


def test_a_slice_is_drawn(client: TestClient) -> None:
    answer = client.get(f"/v1/volumes/{quote(IDS[0])}/slices/axial/5.png", params={"side": 64})
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert max(picture.size) == 64
    assert client.get(f"/v1/volumes/{quote(IDS[0])}/slices/axial/99.png").status_code == 422
    assert client.get("/v1/volumes/nothing/slices/axial/0.png").status_code == 404


def test_it_answers_over_a_socket(served: Served) -> None:
    assert served.client.get("/readyz").status_code == 200
    assert served.client.get("/v1/snapshot").json()["volumes"] == 7


@pytest.mark.parametrize("path", ["volumes?after={}:x", "volumes/x/previews/{}", "volumes/x/slices/axial/{}.png"])
def test_numbers_of_any_length_are_answered(client: TestClient, path: str) -> None:
    """Python converts no more than 4,300 digits."""
    assert client.get(f"/v1/{path.format('9' * 4301)}").status_code in (404, 422)
