"""The recipe's digest."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from medret.errors import CorruptError, UsageError, VersionError
from medret.recipe import USUAL, Contract, ModelRecipe, Recipe, SliceRecipe, digest_of
from medret.snapshot import RecipeEntry

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


CONTRACTS = [
    Contract(channels=1),
    Contract(values="real"),
    Contract(values="real", clip_hu=(-1000, 1000)),
    Contract(windows_hu=((-1225, 1025), (-135, 215), (0, 80))),
    Contract(normalise="image"),
    Contract(orientation="neurological"),
    Contract(resample="bicubic"),
    Contract(pooling="mean"),
]


def test_a_usual_recipe_keeps_the_digest_that_it_had_before_there_were_contracts() -> None:
    """The digest of a store that medret 0.1 wrote (tests/golden), and no trace of a contract in its JSON."""
    assert "contract" not in Recipe(SliceRecipe(), MODEL).to_json()["model"]
    assert {f.name for f in fields(ModelRecipe)} - Recipe(SliceRecipe(), MODEL).to_json()["model"].keys() == {
        "contract",
        "image_size",
    }
    golden = next((Path(__file__).parent / "golden" / "store" / "snapshots").glob("*/manifest.json"))
    (recipe,) = (entry["recipe"] for entry in json.loads(golden.read_text())["recipes"])
    assert Recipe.from_json(recipe).digest == recipe["digest"]


def test_each_field_of_a_contract_changes_the_digest_and_survives_json() -> None:
    recipes = [Recipe(SliceRecipe(), replace(MODEL, contract=contract)) for contract in (USUAL, *CONTRACTS)]
    assert len({recipe.digest for recipe in recipes}) == len(CONTRACTS) + 1
    for recipe in recipes:
        record = json.loads(json.dumps(recipe.to_json()))
        again = RecipeEntry(recipe=record, weights_source="none").load()
        assert again == recipe
        assert again.digest == recipe.digest
    differing = {name for contract in CONTRACTS for name in contract.to_json()}
    assert differing == {f.name for f in fields(Contract)}, "a field is not tested"


def test_a_contract_of_a_later_version_is_not_read_as_another() -> None:
    record = Recipe(SliceRecipe(), replace(MODEL, contract=CONTRACTS[0])).to_json()
    record["model"]["contract"]["gamma"] = 2.2
    with pytest.raises(VersionError):
        RecipeEntry(recipe=record, weights_source="none").load()
    wrongs: tuple[Any, ...] = ([], "grey", 7)
    for wrong in wrongs:
        with pytest.raises((VersionError, CorruptError)):
            RecipeEntry(recipe={**record, "model": {**record["model"], "contract": wrong}}, weights_source="").load()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"windows_hu": ((0, 80),)}, "1 windows for 3 channels"),
        ({"windows_hu": ((80, 0),), "channels": 1}, "80 to 0 HU"),
        ({"clip_hu": (-1000, 1000)}, "clip_hu is of values 'real'"),
        ({"values": "real", "clip_hu": (0, float("inf"))}, "not two ascending numbers"),
        ({"values": "real", "windows_hu": ((0, 80),), "channels": 1}, "values 'grey'"),
    ],
)
def test_an_impossible_contract_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Contract(**fields)


def test_numbers_that_are_equal_make_equal_contracts() -> None:
    whole, floats = Contract(windows_hu=((0, 80),) * 3), Contract(windows_hu=((0.0, 80.0),) * 3)
    assert digest_of(whole.to_json()) == digest_of(floats.to_json())


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
