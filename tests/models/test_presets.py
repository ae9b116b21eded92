"""Presets against their references.

A checkpoint in the published layout, small and of random values, is fed the numbers that the model's own image
processor gives, and gives the vectors that the reference's own classes give.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from medret.errors import UsageError, WeightsError
from medret.models import Encoder, ModelSpec, model_spec, resolve_weights
from medret.models.hf_models import build_pooled
from medret.models.open_names import measure
from medret.models.registry import PRESETS
from medret.models.timm_models import ImageTower, build_timm
from medret.models.words import load_text_tower
from medret.recipe import SliceRecipe, stack_shape
from medret.volume import read_volume

TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHORTEST = {"size": {"shortest_edge": 518}, "crop_size": {"height": 518, "width": 518}}
# The image processors as their publishers wrote them beside the weights.
PROCESSORS: dict[str, dict[str, Any]] = {
    "rad_dino": {
        "image_processor_type": "BitImageProcessor", "do_center_crop": True, "do_convert_rgb": True, "resample": 3,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.5307] * 3, "image_std": [0.2583] * 3, **SHORTEST,
    },
    "dinov3": {
        "image_processor_type": "DINOv3ViTImageProcessorFast", "do_normalize": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224}, "crop_size": None,
        "data_format": "channels_first", "device": None, "disable_grouping": None, "do_center_crop": None,
    },
    "medsiglip": {
        "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
        "rescale_factor": 0.00392156862, "size": {"height": 448, "width": 448},
    },
    "curia": {
        "image_processor_type": "CuriaImageProcessor", "crop_size": 512, "clip_below_air": True, "eps": 1e-06,
        "do_resize": True, "do_normalize": True,
        "auto_map": {"AutoImageProcessor": "curia_image_processor.CuriaImageProcessor"},
    },
}  # fmt: skip


def processor_of(name: str) -> dict[str, Any]:
    return PROCESSORS[name.partition("_")[0] if name.startswith("dinov3") else name.removesuffix("2")]


def saved(name: str, model: Any, folder: Path) -> str:
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_of(name)))
    return str(folder)


def smaller(spec: ModelSpec, dim: int) -> ModelSpec:
    """The preset, for a checkpoint of another width."""
    return replace(spec, dim=dim)


def drawn(spec: ModelSpec, slices: Any, count: int = 2) -> Any:
    images = slices(3 * count, spec.image_size)
    return images.reshape(count, 3, *images.shape[1:]) if len(stack_shape(spec.images)) == 3 else images[:count]


def as_rgb(image: Any) -> Image.Image:
    stack = image if image.ndim == 3 else np.repeat(image[None], 3, axis=0)
    return Image.fromarray(np.moveaxis(stack, 0, 2))


def fed(encoder: Encoder, images: Any) -> torch.Tensor:
    return encoder._normalised(torch.from_numpy(images).float())


def agree(encoder: Encoder, images: Any, expected_pixels: Any, expected: Any) -> None:
    pixels = fed(encoder, images)
    np.testing.assert_allclose(pixels.expand(expected_pixels.shape), expected_pixels, atol=2e-5)
    found = encoder.embed(images)
    assert np.abs(found[0] - found[1]).max() > 50 * np.abs(found - expected.numpy()).max()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", PRESETS, ids=lambda spec: spec.name)
def test_width_and_cost_are_those_of_the_architecture(spec: ModelSpec) -> None:
    config = json.loads(spec.config_json or "{}")
    make = {
        "hf": lambda: build_pooled(config, spec.name, spec.contract.pooling),
        "timm": lambda: build_timm(spec),
        "open_clip": lambda: ImageTower(spec.architecture, spec.dim),
    }[spec.family]
    dim, gmacs = measure(make, spec.image_size, spec.name, spec.contract.channels)
    assert dim == spec.dim
    assert gmacs == pytest.approx(spec.gmacs, rel=0.05)


@pytest.mark.parametrize("name", ["rad_dino", "dinov3_s16", "dinov3_b16", "dinov3_l16"])
def test_a_self_supervised_transformer(name: str, tmp_path: Path, slices: Any) -> None:
    """Reference: transformers' own processor and model."""
    spec = smaller(model_spec(name), 32)
    config = json.loads(spec.config_json or "{}") | TINY
    torch.manual_seed(0)
    model: Any = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    folder = saved(name, model, tmp_path / name)
    images = drawn(spec, slices)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor([as_rgb(image) for image in images], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        output = model(pixel_values=pixels)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0])
    agree(Encoder(spec, resolve_weights(spec, folder), batch_size=2), images, pixels, output.pooler_output)


def test_medsiglip(tmp_path: Path, slices: Any) -> None:
    """Reference: transformers' own processor and model, fed the three windows as RGB."""
    spec = smaller(model_spec("medsiglip"), 32)
    vision, text = {**TINY, "image_size": 448, "patch_size": 14}, {**TINY, "vocab_size": 99}
    torch.manual_seed(0)
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
    folder = saved("medsiglip", model, tmp_path / "medsiglip")
    images = drawn(spec, slices)
    assert images.shape == (2, 3, 448, 448)
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor([as_rgb(image) for image in images], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    agree(Encoder(spec, resolve_weights(spec, folder), batch_size=2), images, pixels, expected)


@pytest.mark.parametrize("name", ["curia", "curia2"])
def test_curia(name: str, tmp_path: Path) -> None:
    """Reference: the steps of Curia's processor in torch's own functions, and transformers' Dinov2Model."""
    import nibabel as nib

    hu = np.random.default_rng(0).normal(0, 400, (64, 64, 3)).clip(-1024, 3000).round().astype(np.int16)
    hu[:20] = -1024
    data = nib.Nifti1Image(hu, np.diag([1.0, 1.0, 1.0, 1.0])).to_bytes()
    spec = smaller(model_spec(name), 32)
    volume = read_volume(data, "v", SliceRecipe(slices="all", crop="none"), [spec.images], modality="CT")
    assert volume.facts.intensity.startswith("hu")
    images = volume.pixels[spec.images]
    axial = torch.from_numpy(np.moveaxis(hu, 2, 0).transpose(0, 2, 1)[:, ::-1, ::-1].astype(np.float32))[:, None]
    pixels = torch.nn.functional.interpolate(axial, (512, 512), mode="bicubic", antialias=True)
    pixels = torch.stack([(image - image.mean()) / image.std() for image in pixels])
    config = json.loads(spec.config_json or "{}") | TINY
    torch.manual_seed(0)
    model: Any = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config)).eval()
    folder = saved(name, model, tmp_path / name)
    with torch.inference_mode():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    encoder = Encoder(spec, resolve_weights(spec, folder), batch_size=3)
    np.testing.assert_allclose(fed(encoder, images), pixels, atol=1e-3)
    np.testing.assert_allclose(encoder.embed(images), expected, rtol=1e-2, atol=2e-3)


RADIODINO = {
    "architecture": "vit_small_patch16_224", "num_classes": 0, "num_features": 384, "global_pool": "token",
    "pretrained_cfg": {
        "tag": "dino", "custom_load": False, "input_size": [3, 224, 224], "fixed_input_size": True,
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225], "num_classes": 0, "pool_size": None, "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
    "model_type": "vit", "hidden_size": 384,
}  # fmt: skip


def test_radiodino_is_what_timm_reads_from_its_folder(scratch: Path, slices: Any, randomise: Any) -> None:
    """Reference: timm's own reading of the folder, by `local-dir:`; and medret's by the open name."""
    save_file(dict(randomise(timm.create_model("vit_small_patch16_224", num_classes=0))), scratch / "model.safetensors")
    (scratch / "config.json").write_text(json.dumps(RADIODINO))
    reference = timm.create_model(f"local-dir:{scratch}", pretrained=True).eval()
    images = slices(2, 224)
    data: Any = timm.data
    settings = data.resolve_model_data_config(reference) | {"crop_pct": 1.0}  # medret's images are whole
    transform = data.create_transform(**settings)
    pixels = torch.stack([transform(as_rgb(image)) for image in images])
    with torch.inference_mode():
        expected = reference(pixels)
    spec = model_spec("radiodino_s16")
    agree(Encoder(spec, resolve_weights(spec, str(scratch)), batch_size=2), images, pixels, expected)
    name = "timm:hf_hub:Snarcy/RadioDino-s16@main"
    opened = model_spec(name, str(scratch))
    assert (opened.dim, opened.image_size, opened.mean, opened.std) == (384, 224, spec.mean, spec.std)
    assert [(origin.repo, origin.revision) for origin in opened.origins] == [("Snarcy/RadioDino-s16", "main")]  # type: ignore[union-attr]
    agree(Encoder(opened, resolve_weights(opened, str(scratch)), batch_size=2), images, pixels, expected)


BIOMEDCLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": False, "timm_pool": "",
            "timm_proj": "linear", "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 256,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
    },
}  # fmt: skip


def write_biomedclip(folder: Path, randomise: Any) -> tuple[Any, Any]:
    """Towers of OpenCLIP's own classes in one file, as it publishes them; BERT is small."""
    visual = open_clip.timm_model.TimmModel("vit_base_patch16_224", 512, 224, pool="", proj="linear")
    bert = transformers.BertConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=48,
        max_position_embeddings=256,
    )  # fmt: skip
    text = open_clip.hf_model.HFTextEncoder("", 512, bert, "cls_last_hidden_state_pooler", "mlp")
    randomise(visual)
    randomise(text)
    state = {f"visual.{key}": value for key, value in visual.state_dict().items()}
    state |= {f"text.{key}": value for key, value in text.state_dict().items() if ".pooler." not in key}
    state |= {"logit_scale": torch.tensor(4.6), "text.transformer.embeddings.position_ids": torch.arange(256)[None]}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(BIOMEDCLIP))
    return visual, text


def test_biomedclip(scratch: Path, slices: Any, randomise: Any) -> None:
    """Reference: OpenCLIP's own transform, image tower and text tower."""
    visual, text = write_biomedclip(scratch, randomise)
    spec = model_spec("biomedclip")
    images, settings = slices(2, 224), BIOMEDCLIP["preprocess_cfg"]
    transform: Any = open_clip.image_transform(224, is_train=False, mean=settings["mean"], std=settings["std"])
    pixels = torch.stack([transform(as_rgb(image)) for image in images])
    ids = torch.tensor([[2, 9, 12, 3, 0, 0], [2, 40, 3, 0, 0, 0]])
    with torch.inference_mode():
        expected, words = visual(pixels), text(ids)
    weights = resolve_weights(spec, str(scratch))
    agree(Encoder(spec, weights, batch_size=2), images, pixels, expected)
    with torch.inference_mode():
        found = load_text_tower(spec, weights).eval()(ids, (ids != 0).long())
    torch.testing.assert_close(found, words, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_cfg": {**BIOMEDCLIP["model_cfg"], "embed_dim": 768}}, "embed_dim 768 instead of 512"),
        ({"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, r"mean \(0\.5, 0\.5, 0\.5\) instead of"),
    ],
)
def test_another_model_of_openclip_is_refused(
    change: dict[str, Any], message: str, scratch: Path, randomise: Any
) -> None:
    write_biomedclip(scratch, randomise)
    (scratch / "open_clip_config.json").write_text(json.dumps(BIOMEDCLIP | change))
    spec = model_spec("biomedclip")
    with pytest.raises(WeightsError, match=message):
        Encoder(spec, resolve_weights(spec, str(scratch)))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"image_mean": [0.4] * 3}, "mean .*0.4.* instead of .*0.5307"), ({"crop_size": 224}, "image_size 224 instead")],
)
def test_weights_whose_processor_says_otherwise_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    spec = smaller(model_spec("rad_dino"), 32)
    config = json.loads(spec.config_json or "{}") | TINY
    folder = saved(
        "rad_dino", transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config)), tmp_path
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_of("rad_dino") | change))
    with pytest.raises(WeightsError, match=message):
        Encoder(spec, resolve_weights(spec, folder))


def test_a_gated_model_says_so_where_its_weights_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"accept the DINOv3 License.*--weights dinov3_b16=FOLDER"):
        resolve_weights(model_spec("dinov3_b16"))
    assert {spec.name for spec in PRESETS if spec.terms} == {spec.name for spec in PRESETS} - {"radiodino_s16"}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"do_color_quantize": True}, "do_color_quantize = True"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "include_top = True"),
        ({"rescale_offset": True}, "rescale_offset = True"),
        ({"do_gamma": 2.2}, "do_gamma = 2.2"),
        ({**processor_of("curia"), "hu_shift": 3}, "hu_shift = 3"),
        ({**processor_of("curia"), "do_normalize": False}, "do_normalize = False"),
    ],
)
def test_a_key_that_is_not_followed_is_refused_by_its_name(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**TINY, image_size=56, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    usual = {} if "crop_size" in change else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 56}
    content = {**usual, **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"{key}.*--model-config"):
        model_spec("hf:some/model", str(tmp_path))
