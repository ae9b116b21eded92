"""Archives indexed with small image-text models of random values, and searched with words in every way there is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import medret
from medret.cli import main
from medret.models.spec import packaged_spec
from medret.serve import LiveStores, ServeSettings, Service, create_app
from tests.towers import PROJECTED, announce, write_biomedclip, write_two_towers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
MODELS = {"clip": "hf:own/clip", "siglip": "hf:own/siglip", "biomedclip": "small_biomedclip"}
TEXT = "axial CT, liver with cysts"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package that brings a small BiomedCLIP."""
    folder = tmp_path_factory.mktemp("site-packages")
    announce(folder, "small_biomedclip", "tests.towers:small_biomedclip")
    packaged_spec.cache_clear()
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))
    packaged_spec.cache_clear()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for kind, name in MODELS.items():
        folder = tmp_path_factory.mktemp(kind)
        if kind == "biomedclip":
            write_biomedclip(folder)
        else:
            write_two_towers(kind, folder)
        found[name] = str(folder)
    return found


@pytest.fixture(scope="module")
def store(
    phantom_archive: Path, weights: dict[str, str], installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All three in one store, beside a model without words."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "models.toml").write_text(f'["{MODELS["clip"]}"]\n{PROJECTED}\n')
    given = [text for name, path in weights.items() for text in ("--model", name, "--weights", f"{name}={path}")]
    more = ["--model", "timm:test_vit", "--weights", "timm:test_vit=random", "--slices", "uniform:2", "--quiet"]
    labels = ["--labels", str(phantom_archive.parent / "labels.csv"), "--model-config", str(folder / "models.toml")]
    arguments = ["index", str(phantom_archive), str(folder / "store"), *given, *more, *labels, "--device", "cpu"]
    assert main(arguments) == 0
    return folder / "store"


def ids(hits: Any) -> list[str]:
    return [hit["volume_id"] if isinstance(hit, dict) else hit.volume_id for hit in hits]


# After its text tower, a query in words is one vector, whatever the model.
@pytest.mark.parametrize(("kind", "mode"), [*((kind, "volume") for kind in MODELS), ("clip", "max"), ("clip", "slice")])
def test_by_command_in_python_and_over_http(
    kind: str, mode: str, store: Path, weights: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = MODELS[kind]
    place = {name: weights[name]}
    expected = medret.open_snapshot(store).search(medret.Words(TEXT), 4, model=name, weights=place, mode=mode)
    assert len(ids(expected)) == 4
    assert all(hit.slices is not None for hit in expected)
    arguments = ["search", str(store), "--text", TEXT, "--model", name, "--weights", f"{name}={weights[name]}"]
    page = tmp_path / "hits.html"
    assert main([*arguments, "-k", "4", "--mode", mode, "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == TEXT
    assert ids(found["hits"]) == ids(expected)
    assert "liver with cysts" in page.read_text()
    assert main([*arguments, "-k", "4", "--mode", mode]) == 0
    assert ids(expected)[0] in capsys.readouterr().out
    if mode in ("volume", "max"):
        why = ["explain", str(store), TEXT, ids(expected)[0], "--text", *arguments[4:], "--mode", mode, "--json"]
        assert main(why) == 0
        assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(expected[0].score, abs=1e-6)
    stores = LiveStores([str(store)])
    try:
        settings = ServeSettings(device="cpu", weights=place)
        with TestClient(create_app(Service(stores, settings)), base_url="http://127.0.0.1") as client:
            answer = client.post("/v1/search", json={"text": TEXT, "model": name, "k": 4, "mode": mode})
            assert answer.status_code == 200, answer.text
            assert answer.json()["query"] == TEXT
            assert ids(answer.json()["hits"]) == ids(expected)
    finally:
        stores.close()


def test_other_words_find_other_volumes(store: Path, weights: dict[str, str]) -> None:
    snapshot, name = medret.open_snapshot(store), MODELS["siglip"]
    options: dict[str, Any] = {"model": name, "weights": weights, "index": "exact"}
    first, second = (snapshot.search(medret.Words(text), 100, **options) for text in (TEXT, "MRI scan of the brain"))
    assert [hit.score for hit in first] != [hit.score for hit in second]
    kept = snapshot.search(medret.Words(TEXT), 100, where="modality = 'CT'", **options)
    assert ids(kept) == [hit.volume_id for hit in first if hit.labels["modality"] == "CT"]


def test_a_model_without_words_is_refused_by_name(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(store), "--text", TEXT, "--model", "timm:test_vit"]) == 2
    assert "timm:test_vit has no text tower" in capsys.readouterr().err
    stores = LiveStores([str(store)])
    try:
        with TestClient(create_app(Service(stores, ServeSettings())), base_url="http://127.0.0.1") as client:
            answer = client.post("/v1/search", json={"text": TEXT, "model": "timm:test_vit"})
            assert answer.status_code == 422
            assert "timm:test_vit has no text tower" in answer.json()["reason"]
            both = client.post("/v1/search", json={"text": TEXT, "volume": "x"})
            assert (both.status_code, "volume and text" in both.json()["reason"]) == (422, True)
    finally:
        stores.close()


def test_what_is_served_says_which_models_take_words(store: Path, weights: dict[str, str]) -> None:
    """Of SigLIP the configuration beside the weights says so, of the others their name or their recipe."""
    stores = LiveStores([str(store)])
    try:
        for given, expected in ((weights, set(MODELS)), ({}, {"clip", "biomedclip"})):
            with TestClient(
                create_app(Service(stores, ServeSettings(weights=given))), base_url="http://127.0.0.1"
            ) as client:
                models = client.get("/v1/snapshot").json()["models"]
            text = {model["name"]: model["text"] for model in models}
            assert {name for name in text if text[name]} == {MODELS[kind] for kind in expected}
            assert "timm:test_vit" in text
    finally:
        stores.close()


def test_no_query_is_wrong_usage(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(store)]) == 2
    assert "there is no query" in capsys.readouterr().err
