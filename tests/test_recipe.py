"""The recipe's digest."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from medret.errors import UsageError
from medret.recipe import ModelRecipe, Recipe, SliceRecipe, digest_of

MODEL = ModelRecipe("resnet50", "0" * 64, 224, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 2048, "fp32")


def test_recipe_survives_json() -> None:
    recipe = Recipe(SliceRecipe(planes=("axial", "coronal"), slices="random:5", seed=3), MODEL)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.digest == recipe.digest


def test_everything_that_changes_vectors_changes_the_digest() -> None:
    base = Recipe(SliceRecipe(), MODEL)
    others = [
        Recipe(replace(base.slices, seed=1), MODEL),
        Recipe(replace(base.slices, slices="all"), MODEL),
        Recipe(replace(base.slices, planes=("coronal",)), MODEL),
        Recipe(replace(base.slices, crop="none"), MODEL),
        Recipe(replace(base.slices, ct_window="lung"), MODEL),
        Recipe(base.slices, replace(MODEL, weights_sha256="1" * 64)),
        Recipe(base.slices, replace(MODEL, precision="bf16")),
        Recipe(base.slices, replace(MODEL, vectors_version=99)),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == len(others) + 1


def test_altered_record_is_refused() -> None:
    record = Recipe(SliceRecipe(), MODEL).to_json()
    record["slices"]["seed"] = 7
    with pytest.raises(UsageError, match="digest"):
        Recipe.from_json(record)


@pytest.mark.parametrize("planes", [(), ("axial", "axial"), ("oblique",)])
def test_planes_are_checked(planes: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="axial, coronal, sagittal"):
        SliceRecipe(planes=planes)  # type: ignore[arg-type]  # what a caller may get wrong


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest_of({"a": 1, "b": [1.5]}) == digest_of({"b": [1.5], "a": 1})
