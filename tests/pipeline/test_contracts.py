"""Runs whose models are fed otherwise than usual, beside one that is fed as usual."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import medret
from medret.cli import main
from medret.embeddings import unit_slices
from medret.models import Encoder, model_spec, resolve_weights
from medret.recipe import Contract
from medret.volume import read_volume

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
Opened = Callable[[str | Path], SimpleNamespace]
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
USUAL, REAL, WINDOWS = "timm:test_vit", "hf:own/real", "hf:own/windows"
CONFIG = f"""
["{WINDOWS}"]
image_size = 56
mean = [0.5]
std = [0.5]
windows_hu = [[-1225, 1025], [-135, 215], [0, 80]]
resample = "bicubic"
"""
CONTRACTS = {
    USUAL: Contract(),
    REAL: Contract(channels=1, values="real", normalise="image", resample="bicubic"),
    WINDOWS: Contract(windows_hu=((-1225, 1025), (-135, 215), (0, 80)), resample="bicubic"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small models of random values: one fed as Curia is, one whose processor medret does not follow."""
    torch.manual_seed(0)
    processors = {
        REAL: {"image_processor_type": "CuriaImageProcessor", "crop_size": 56, "clip_below_air": True},
        WINDOWS: {"do_gamma": True},
    }
    found = {USUAL: "random"}
    for name, processor in processors.items():
        folder = tmp_path_factory.mktemp("model")
        channels = CONTRACTS[name].channels
        config = transformers.Dinov2Config(**TINY, image_size=56, patch_size=14, num_channels=channels)
        transformers.Dinov2Model(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        found[name] = str(folder)
    return found


@pytest.fixture(scope="module")
def options(weights: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a run: without what the file of --model-config says."""
    given = [text for name in CONTRACTS for text in ("--model", name, "--weights", f"{name}={weights[name]}")]
    return [*given, "--slices", "uniform:3", "--quiet", "--device", "cpu"]


@pytest.fixture(scope="module")
def store(phantom_archive: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contracts")
    (folder / "models.toml").write_text(CONFIG)
    config = ["--model-config", str(folder / "models.toml")]
    assert main(["index", str(phantom_archive), str(folder / "store"), *options, *config]) == 0
    return folder / "store"


def test_the_store_says_what_its_models_are_fed(store: Path, opened: Opened) -> None:
    recipes = {entry.model: entry.load() for entry in opened(store).manifest.recipes}
    assert {name: recipe.model.contract for name, recipe in recipes.items()} == CONTRACTS
    assert len({recipe.digest for recipe in recipes.values()}) == 3


@pytest.mark.parametrize("name", CONTRACTS)
def test_vectors_are_what_the_encoder_gives_directly(
    name: str, store: Path, phantom_archive: Path, weights: dict[str, str], opened: Opened
) -> None:
    found = opened(store)
    recipe = next(entry.load() for entry in found.manifest.recipes if entry.model == name)
    from medret.models import stated_by

    spec = model_spec(name, weights[name], stated_by(recipe.model))
    encoder = Encoder(spec, resolve_weights(spec, weights[name]), precision=recipe.model.precision)
    for volume_id, modality in (("chest_ct/chest_ct_1.nii.gz", "CT"), ("head_mri/head_mri_0.nii.gz", "MRI")):
        data = (phantom_archive / volume_id).read_bytes()
        (images,) = read_volume(data, volume_id, recipe.slices, [spec.images], modality=modality).pixels.values()
        direct, _ = unit_slices(encoder.embed(images))
        stored = found.vectors(name)[volume_id].astype(np.float32)
        assert (stored * direct.astype(np.float32)).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_file_finds_itself(name: str, store: Path, phantom_archive: Path, weights: dict[str, str]) -> None:
    """Searched as it was indexed, without the file of --model-config."""
    volume_id = "chest_ct/chest_ct_1.nii.gz"
    hits = medret.open_snapshot(store).search(
        phantom_archive / volume_id, 2, model=name, weights=weights, index="exact", modality="CT"
    )
    assert hits[0].volume_id == volume_id
    assert hits[0].score > 0.999 > hits[1].score


def test_previews_are_made_whatever_the_models_are_fed(store: Path, weights: dict[str, str]) -> None:
    previews = medret.open_snapshot(store).previews(["chest_ct/chest_ct_1.nii.gz"])
    assert all(previews.values())


def test_the_next_run_knows_what_was_stated(
    store: Path, phantom_archive: Path, options: list[str], opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    before = opened(store).manifest
    assert main(["index", str(phantom_archive), str(store), *options]) == 0
    assert opened(store).manifest == before


def test_two_contracts_never_mix(
    store: Path, phantom_archive: Path, options: list[str], weights: dict[str, str], tmp_path: Path, opened: Opened
) -> None:
    """The same model and weights under another contract: other digests, and no search over both."""
    (tmp_path / "models.toml").write_text(CONFIG.replace("80]", "90]"))
    config = ["--model-config", str(tmp_path / "models.toml")]
    only = ["--model", WINDOWS, "--weights", f"{WINDOWS}={weights[WINDOWS]}", "--slices", "uniform:3", "--quiet"]
    other = tmp_path / "store"
    glob = ["--glob", "head_mri/*"]
    assert main(["index", str(phantom_archive), str(other), *only, *config, *glob, "--device", "cpu"]) == 0
    mine = next(entry for entry in opened(store).manifest.recipes if entry.model == WINDOWS)
    (theirs,) = opened(other).manifest.recipes
    assert mine.load().model.weights_sha256 == theirs.load().model.weights_sha256
    assert mine.digest != theirs.digest
    with pytest.raises(medret.UsageError, match="recipe"):
        medret.open_snapshots([store, other]).search("head_mri/head_mri_0.nii.gz", model=WINDOWS)


def test_a_file_that_names_another_model_is_refused(
    phantom_archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models.toml").write_text(CONFIG)
    arguments = [
        "plan",
        str(phantom_archive),
        str(tmp_path / "store"),
        "--model",
        USUAL,
        "--weights",
        f"{USUAL}=random",
    ]
    assert main([*arguments, "--model-config", str(tmp_path / "models.toml")]) == 2
    assert f"states the input of {WINDOWS}, but the models of this run are {USUAL}" in capsys.readouterr().err
