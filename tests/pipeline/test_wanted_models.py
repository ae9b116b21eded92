"""The models of a run: their terms, and who says what they are fed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from medret.models import model_spec, resolve_weights, stated_by
from medret.models.spec import Stated
from medret.pipeline.model_jobs import WantedModel, recipe_changes
from medret.pipeline.prepare import read_inputs
from medret.pipeline.request import IndexRequest
from medret.pipeline.result import begin
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.snapshot import RecipeEntry

TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56}
NAME = "hf:own/model"


def test_a_run_begins_with_the_terms_of_its_models(phantom_archive: Path, tmp_path: Path) -> None:
    names = ("rad_dino", "dinov3_s16", "efficientnet_lite0")
    weights = dict.fromkeys(names, "random")
    said: list[str] = []
    read_inputs(IndexRequest(str(phantom_archive), str(tmp_path), models=names, weights=weights), begin(), said.append)
    assert said == [
        "rad_dino (MIT): for research only, not for clinical use, as its publisher's page says",
        "dinov3_s16 (DINOv3 License): its publisher gives the weights to those who accept the DINOv3 License",
    ]


@pytest.mark.parametrize("are_the_stores", [True, False])
def test_other_weights_are_fed_as_their_own_files_say(are_the_stores: bool, tmp_path: Path) -> None:
    transformers.Dinov2Model(transformers.Dinov2Config(**TINY, patch_size=14)).save_pretrained(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 56}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    stated = Stated(mean=(0.4,) * 3, contract={"normalise": "image"})
    spec = model_spec(NAME, str(tmp_path), stated)
    sha256 = resolve_weights(spec, str(tmp_path)).sha256 if are_the_stores else "0" * 64
    stored = ModelRecipe(NAME, sha256, 56, spec.mean, spec.std, 32, "fp32", contract=spec.contract)
    wanted = WantedModel(model_spec(NAME, str(tmp_path), stated_by(stored)), str(tmp_path), stored)
    found, weights = wanted.resolve()
    assert found == (spec if are_the_stores else model_spec(NAME, str(tmp_path)))
    assert found.mean == ((0.4,) * 3 if are_the_stores else (0.5,) * 3)
    assert weights.model == NAME


def test_what_a_recipe_no_longer_says_has_changed_too() -> None:
    recipe = Recipe(SliceRecipe(), ModelRecipe("made", "0" * 64, 224, (0.5,) * 3, (0.5,) * 3, 8, "fp32"))
    before = recipe.to_json()
    before |= {"digest": "0" * 16, "model": before["model"] | {"former": 1}}
    live: Any = SimpleNamespace(recipes=[RecipeEntry(recipe=before, weights_source="x")])
    assert recipe_changes([recipe], live) == ["made: former is None, was 1"]
