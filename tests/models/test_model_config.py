"""`--model-config`: what a user states about a model's input, and what a store's recipe says about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from medret.errors import UsageError, WeightsError
from medret.models import Encoder, model_spec, read_model_config, resolve_weights, stated_by
from medret.models.model_input import Fed, stated
from medret.models.spec import Stated
from medret.recipe import Contract, ModelRecipe

TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "models.toml"
    path.write_text(text)
    return str(path)


def test_every_field_can_be_stated(tmp_path: Path) -> None:
    uri = written(
        tmp_path,
        """
        ["hf:own/ct"]
        image_size = 64
        mean = [-200]
        std = 300.5
        channels = 1
        values = "real"
        clip_hu = [-1000, 1000]
        normalise = "fixed"
        orientation = "neurological"
        resample = "bicubic"
        pooling = "mean"

        ["timm:vit_tiny_patch16_224"]
        windows_hu = [[-1000, 1000], [0, 80], [-135, 215]]
        """,
    )
    ct, rgb = read_model_config(uri).values()
    assert (ct.image_size, ct.mean, ct.std) == (64, (-200.0,) * 3, (300.5,) * 3)
    assert Contract(**ct.contract) == Contract(1, "real", (), (-1000, 1000), "fixed", "neurological", "bicubic", "mean")
    assert Contract(**rgb.contract) == Contract(windows_hu=((-1000, 1000), (0, 80), (-135, 215)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["hf:x"]\nmean = [0.5, 0.2]', "mean or std has 2 values, expected one, or one per channel"),
        ('["hf:x"]\ngamma = 2', "gamma.*the keys are image_size, mean"),
        ('["hf:x"]\nimage_size = "wide"', "image_size"),
        ('["hf:x"]\nwindows_hu = [[1, 2, 3]]', "windows_hu"),
        ('["hf:x"]\nvalues = "colour"', "values"),
        ("hf = 3", r'\["hf"\]'),
        ("[hf", "cannot be read as TOML"),
    ],
)
def test_a_mistake_is_named(text: str, message: str, tmp_path: Path) -> None:
    uri = written(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        read_model_config(uri)
    assert uri in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        read_model_config("/no/such.toml")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model of one channel whose processor medret does not follow."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**TINY, image_size=56, patch_size=14, num_channels=1)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_gamma": True}))
    return str(tmp_path)


def test_what_is_stated_stands_in_place_of_the_file(folder: str) -> None:
    with pytest.raises(UsageError, match="do_gamma"):
        model_spec("hf:own/ct", folder)
    contract = {"values": "real", "clip_hu": (-1000.0, 1000.0), "pooling": "mean"}
    stated = Stated(56, (-200.0,) * 3, (300.0,) * 3, contract)
    spec = model_spec("hf:own/ct", folder, stated)
    assert spec.contract == Contract(channels=1, **contract)  # type: ignore[arg-type]
    images = np.random.default_rng(0).normal(0, 400, (2, 56, 56)).astype(np.float32)
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    with torch.inference_mode():
        tokens = model(pixel_values=(torch.from_numpy(images)[:, None] + 200) / 300).last_hidden_state
    found = Encoder(spec, resolve_weights(spec, folder), batch_size=2).embed(images)
    np.testing.assert_allclose(found, tokens[:, 1:].mean(1), rtol=1e-3, atol=1e-4)
    recipe = ModelRecipe("hf:own/ct", "0" * 64, 56, spec.mean, spec.std, 32, "fp32", contract=spec.contract)
    assert model_spec("hf:own/ct", folder, stated_by(recipe)) == spec, "a search is fed as its store was"


def test_a_part_may_be_stated(tmp_path: Path) -> None:
    transformers.Dinov2Model(transformers.Dinov2Config(**TINY, image_size=56, patch_size=14)).save_pretrained(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 56}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = model_spec("hf:own/ct", str(tmp_path), Stated(contract={"normalise": "image"}))
    assert (spec.image_size, spec.mean) == (56, (0.5,) * 3)
    assert spec.contract == Contract(normalise="image")


@pytest.mark.parametrize("pooling", ["default", "cls", "mean", "pooler"])
def test_pooling_as_stated(pooling: str, tmp_path: Path) -> None:
    """Reference: the tokens of transformers' model; of four registers, none counts as a patch."""
    config = transformers.DINOv3ViTConfig(**TINY, image_size=32, patch_size=16, num_register_tokens=4)
    torch.manual_seed(0)
    model = transformers.DINOv3ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    stated = Stated(32, (0.5,) * 3, (0.5,) * 3, {"pooling": pooling})
    spec = model_spec("hf:own/vit", str(tmp_path), stated)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    pixels = torch.from_numpy(images)[:, None].float().div(127.5).sub(1).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        output = model(pixel_values=pixels)
    tokens = output.last_hidden_state
    assert tokens.shape[1] == 1 + 4 + 4
    expected = {"cls": tokens[:, 0], "mean": tokens[:, 5:].mean(1)}.get(pooling, output.pooler_output)
    found = Encoder(spec, resolve_weights(spec, str(tmp_path)), batch_size=2).embed(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_pooler_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TINY, image_size=32, patch_size=16, intermediate_size=64)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)  # its file has no pooler
    stated = Stated(32, (0.5,) * 3, (0.5,) * 3, {"pooling": "pooler"})
    spec = model_spec("hf:own/vit", str(tmp_path), stated)
    with pytest.raises(UsageError, match="no pooled output with trained weights"):
        Encoder(spec, resolve_weights(spec, str(tmp_path)))


def test_what_cannot_be_is_refused_with_the_model(folder: str) -> None:
    stated = Stated(56, (0.5,) * 3, (0.5,) * 3, {"windows_hu": ((0.0, 80.0),) * 3})
    with pytest.raises(UsageError, match="hf:own/ct: 3 windows for 1 channels"):
        model_spec("hf:own/ct", folder, stated)


def test_timm_models_are_built_as_stated() -> None:
    base = model_spec("timm:vit_tiny_patch16_224")
    stated = Stated(112, None, None, {"channels": 1, "pooling": "mean"})
    spec = model_spec("timm:vit_tiny_patch16_224", None, stated)
    assert (spec.image_size, spec.mean, spec.dim) == (112, base.mean, base.dim)
    assert spec.gmacs < base.gmacs / 3
    images = np.zeros((1, 112, 112), np.uint8)
    assert Encoder(spec, resolve_weights(spec, "random"), batch_size=1).embed(images).shape == (1, spec.dim)
    with pytest.raises(UsageError, match="pooling 'projection' is not timm's"):
        model_spec("timm:vit_tiny_patch16_224", None, Stated(contract={"pooling": "projection"}))


def test_a_model_known_by_name_is_fed_as_its_publisher_says() -> None:
    with pytest.raises(UsageError, match=r"fed as its publisher says, not with image_size 448 instead of 224"):
        model_spec("dinov2", None, Stated(image_size=448))
    assert model_spec("dinov2", None, Stated(image_size=224)) == model_spec("dinov2")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_timm_pooling_as_stated(pooling: str, tmp_path: Path, slices: Any, pixels: Any, randomise: Any) -> None:
    """Reference: timm's tokens after its last norm."""
    model: Any = timm.create_model("test_vit", num_classes=0)
    save_file(dict(randomise(model)), tmp_path / "w.safetensors")
    spec = model_spec("timm:test_vit", None, Stated(contract={"pooling": pooling}))
    images = slices(2, spec.image_size)
    with torch.inference_mode():
        tokens = model.forward_features(pixels(images, spec.mean, spec.std))
    expected = tokens[:, 0] if pooling == "cls" else tokens[:, model.num_prefix_tokens :].mean(1)
    found = Encoder(spec, resolve_weights(spec, str(tmp_path / "w.safetensors")), batch_size=2).embed(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "pooling"), [("test_efficientnet", "cls"), ("deit_tiny_distilled_patch16_224", "mean")]
)
def test_a_pooling_that_a_timm_model_has_not_is_refused(name: str, pooling: str) -> None:
    with pytest.raises(UsageError, match="into a vector"):
        model_spec(f"timm:{name}", None, Stated(contract={"pooling": pooling}))


def test_networks_that_take_any_size_are_not_told_one() -> None:
    spec = model_spec("timm:test_convnext", None, Stated(image_size=96))
    assert (spec.image_size, spec.options) == (96, ())


def test_real_values_need_mean_and_std_in_their_own_unit() -> None:
    grey = Fed(224, (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(UsageError, match="real values need mean and std"):
        stated(grey, Stated(contract={"values": "real"}), "m")
    for enough in (
        Stated(None, (40.0,) * 3, (300.0,) * 3, {"values": "real"}),
        Stated(contract={"values": "real", "normalise": "image"}),
    ):
        assert stated(grey, enough, "m").contract.values == "real"


def test_a_file_that_is_stated_in_full_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(origin: Any) -> Any:
        asked.extend(origin.names)
        raise WeightsError("offline")

    monkeypatch.setattr("medret.models.open_names.fetch", fetch)
    with pytest.raises(WeightsError, match=r"Download config\.json and model\.safetensors"):
        model_spec("hf:own/vit", None, Stated(32, (0.5,) * 3, (0.5,) * 3))
    assert asked == ["config.json"]
