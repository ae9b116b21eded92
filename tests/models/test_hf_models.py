"""`hf:` models from a folder on disk, as transformers itself gives them; nothing is asked of a hub."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from medret.errors import UsageError, WeightsError
from medret.models import Encoder, model_spec, resolve_weights, stage_weights
from medret.models.weights import read_contents

HALF = (0.5, 0.5, 0.5)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def save(model: Any, folder: Path, **processor: Any) -> str:
    model.eval().save_pretrained(folder)
    content = {"image_mean": MEAN, "image_std": STD, "size": {"height": 56, "width": 56}, **processor}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def dinov2(tmp_path: Path) -> tuple[Any, str]:
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, image_size=56, patch_size=14))
    return model, save(model, tmp_path / "rad-dino")


def test_a_folder_by_name_gives_what_transformers_gives(dinov2: Any, slices: Any, pixels: Any, cosines: Any) -> None:
    model, folder = dinov2
    spec = model_spec(f"hf:{folder}")
    assert (spec.dim, spec.image_size, spec.mean, spec.std) == (32, 56, MEAN, STD)
    assert pickle.loads(pickle.dumps(spec)) == spec
    images = slices(3, 56)
    with torch.inference_mode():
        expected = model(pixels(images, MEAN, STD)).pooler_output.numpy()
    found = Encoder(spec, resolve_weights(spec), batch_size=2).embed(images)
    assert cosines(found, expected).min() > 0.99999
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_hub_name_with_a_given_folder(
    dinov2: Any, slices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path / "cache"))
    _, folder = dinov2
    spec = model_spec("hf:microsoft/rad-dino", folder)
    assert spec.name == "hf:microsoft/rad-dino"
    weights = resolve_weights(spec, folder)
    assert set(weights.files) == {"config", "weights"}
    staged = stage_weights(weights, read_contents(weights))
    images = slices(2, 56)
    np.testing.assert_array_equal(
        Encoder(spec, weights, batch_size=2).embed(images), Encoder(spec, staged, batch_size=2).embed(images)
    )


def test_without_a_hub_the_message_says_what_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set.*--weights hf:microsoft/rad-dino=FOLDER"):
        model_spec("hf:microsoft/rad-dino")


def test_the_tower_of_an_image_text_model(tmp_path: Path, slices: Any, pixels: Any, cosines: Any) -> None:
    vision = {**SMALL, "image_size": 32, "patch_size": 16, "intermediate_size": 64, "projection_dim": 16}
    text = {**SMALL, "vocab_size": 50, "intermediate_size": 64, "eos_token_id": 2, "bos_token_id": 1}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    model = transformers.CLIPModel(config)
    folder = save(model, tmp_path / "clip", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    spec = model_spec("hf:some/clip", folder)
    assert (spec.dim, spec.image_size) == (32, 32)
    images = slices(2, 32)
    with torch.inference_mode():
        expected = model.vision_model(pixels(images, MEAN, STD)).pooler_output.numpy()
    found = Encoder(spec, resolve_weights(spec, folder), batch_size=2).embed(images)
    assert cosines(found, expected).min() > 0.99999
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_vit_without_a_trained_pooler_gives_its_class_token(tmp_path: Path, slices: Any, pixels: Any) -> None:
    config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=16, intermediate_size=64)
    model = transformers.ViTForImageClassification(config)  # its file has a classifier and no pooler
    folder = save(model, tmp_path / "vit", size=32)
    spec = model_spec("hf:some/vit", folder)
    images = slices(2, 32)
    with torch.inference_mode():
        expected = model.vit(pixels(images, MEAN, STD)).last_hidden_state[:, 0].numpy()
    found = Encoder(spec, resolve_weights(spec, folder), batch_size=2).embed(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_convolutional_model_is_pooled(tmp_path: Path, slices: Any, pixels: Any) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetModel(config)
    folder = save(model, tmp_path / "resnet")
    spec = model_spec("hf:some/resnet", folder)
    images = slices(2, 56)
    with torch.inference_mode():
        expected = model(pixels(images, MEAN, STD)).pooler_output.flatten(1).numpy()
    found = Encoder(spec, resolve_weights(spec, folder), batch_size=2).embed(images)
    assert found.shape == (2, 16) == (2, spec.dim)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrong", ["missing", "shape"])
def test_another_layout_is_refused(wrong: str, dinov2: Any) -> None:
    _, folder = dinov2
    path = Path(folder) / "model.safetensors"
    state = load_file(path)
    key = "embeddings.cls_token"
    if wrong == "missing":
        del state[key]
    else:
        state[key] = torch.ones(1, 1, 5)
    save_file(state, path, metadata={"format": "pt"})
    spec = model_spec(f"hf:{folder}")
    with pytest.raises(
        WeightsError, match=rf"model\.safetensors.*1 {'missing' if wrong == 'missing' else 'of another'}"
    ):
        Encoder(spec, resolve_weights(spec))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "their_own", "auto_map": {"AutoModel": "modeling.Own"}},
            "does not run code that comes with weights",
        ),
        ({"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}, "not images"),
        ({}, "no model of type 'None'"),
        ({"model_type": "vit", "hidden_size": "wide"}, "config.json does not fit vit: .*hidden_size"),
        ({"model_type": "clip", "vision_config": 7}, "config.json does not fit clip"),
    ],
)
def test_configurations_that_are_no_image_model(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UsageError, match=message):
        model_spec(f"hf:{tmp_path}")


def test_what_a_configuration_says_beyond_the_architecture_is_left_out(dinov2: Any, slices: Any) -> None:
    _, folder = dinov2
    images = slices(2, 56)
    spec = model_spec(f"hf:{folder}")
    expected = Encoder(spec, resolve_weights(spec), batch_size=2).embed(images)
    path = Path(folder) / "config.json"
    odd = {"dtype": "float16", "attn_implementation": "someone/kernels", "_attn_implementation": "someone/kernels"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd, "auto_map": {"AutoModel": "modeling.Own"}}))
    spec = model_spec(f"hf:{folder}")
    np.testing.assert_array_equal(Encoder(spec, resolve_weights(spec), batch_size=2).embed(images), expected)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"holds no config\.json"):
        model_spec(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(WeightsError, match=r"config\.json.*cannot be read as JSON"):
        model_spec(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("processor", "image_size", "mean", "std"),
    [
        ({}, 56, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # no file: ImageNet's values, and the model's own size
        ({"size": 28, "do_normalize": False}, 28, (0, 0, 0), (1, 1, 1)),
        ({"size": {"shortest_edge": 70}, "crop_size": 56, "image_mean": [0.5] * 3, "image_std": 0.5}, 56, HALF, HALF),
        ({"crop_size": 28, "do_center_crop": False, "image_mean": MEAN, "image_std": STD}, 56, MEAN, STD),
        # [0, 255] scaled to [0, 2], then (x - 1) / 1
        ({"rescale_factor": 2 / 255, "image_mean": [1] * 3, "image_std": [1] * 3}, 56, HALF, HALF),
    ],
)  # fmt: skip
def test_preprocessing_is_the_processors(
    processor: dict[str, Any], image_size: int, mean: Any, std: Any, dinov2: Any
) -> None:
    _, folder = dinov2
    path = Path(folder) / "preprocessor_config.json"
    path.unlink()
    if processor:
        path.write_text(json.dumps(processor))
    spec = model_spec(f"hf:{folder}")
    assert spec.image_size == image_size
    np.testing.assert_allclose((spec.mean, spec.std), (mean, std))
    assert ("assumed" in spec.source) is not bool(processor)


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, HALF, HALF),
        ({"feature_extractor_type": "ViTFeatureExtractor", "image_std": STD}, HALF, STD),
        ({"image_processor_type": "CLIPImageProcessorFast", "image_mean": None}, CLIP_MEAN, CLIP_STD),
        ({"auto_map": {"AutoImageProcessor": "own.Own"}, "image_mean": MEAN, "image_std": STD}, MEAN, STD),
    ],
)
def test_what_a_processor_leaves_out_is_its_class_s(
    processor: dict[str, Any], mean: Any, std: Any, dinov2: Any
) -> None:
    """C4: a processor of transformers has values of its own; ImageNet's are not everybody's."""
    _, folder = dinov2
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps({"size": 56, **processor}))
    spec = model_spec(f"hf:{folder}")
    np.testing.assert_allclose((spec.mean, spec.std), (mean, std))


def test_the_processor_beside_a_tokenizer_is_found(dinov2: Any) -> None:
    """C4: where transformers 5 writes it."""
    _, folder = dinov2
    (Path(folder) / "preprocessor_config.json").rename(Path(folder) / "processor_config.json")
    spec = model_spec(f"hf:{folder}")
    assert (spec.mean, spec.std) == (MEAN, STD)
    path = Path(folder) / "processor_config.json"
    path.write_text(json.dumps({"image_processor": json.loads(path.read_text()), "processor_class": "X"}))
    assert model_spec(f"hf:{folder}") == spec


@pytest.mark.parametrize(
    "processor",
    [
        {"auto_map": {"AutoImageProcessor": "own.Own"}},
        {"auto_map": {"AutoImageProcessor": "own.Own"}, "image_processor_type": "ViTImageProcessor", "image_std": STD},
        {"image_processor_type": "TheirProcessor"},
        {},
    ],
)
def test_a_processor_that_does_not_say_its_mean_is_refused(
    processor: dict[str, Any], dinov2: Any, slices: Any, tmp_path: Path
) -> None:
    """C4: what is missing is said, and can be given in a folder; the recipe has what was given."""
    _, folder = dinov2
    path = Path(folder) / "preprocessor_config.json"
    path.write_text(json.dumps({"size": 56, **processor}))
    with pytest.raises(UsageError, match=r"no image_mean.*in a file for --model-config") as caught:
        model_spec("hf:some/model", folder)
    assert ("custom code" in str(caught.value)) is ("auto_map" in processor)
    path.write_text(json.dumps({"size": 56, **processor, "image_mean": MEAN, "image_std": STD}))
    spec = model_spec("hf:some/model", folder)
    assert (spec.mean, spec.std) == (MEAN, STD)


@pytest.mark.parametrize("answer", ["absent", "offline"])
def test_a_hub_that_is_away_is_no_missing_processor(
    answer: str, dinov2: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """C4: ImageNet's values are assumed where the model has no processor, not where it could not be asked for one."""
    import huggingface_hub

    _, folder = dinov2
    absent = huggingface_hub._CACHED_NO_EXIST if answer == "absent" else None
    cached = {"config.json": f"{folder}/config.json"}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name, revision: cached.get(name, absent))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if answer == "absent":
        assert "assumed" in model_spec("hf:some/model").source
    else:
        with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
            model_spec("hf:some/model")


def test_random_weights(dinov2: Any, slices: Any) -> None:
    _, folder = dinov2
    spec = model_spec("hf:some/model", folder)
    first, second = (Encoder(spec, resolve_weights(spec, "random:2")).embed(slices(2, 56)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
