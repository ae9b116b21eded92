"""One vector from each image, of every kind of model that transformers has; transformers itself is the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from medret.errors import UsageError
from medret.models import Encoder, model_spec, resolve_weights
from medret.models.hf_models import Pooled, check_repeatable

SIDE = 32
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
HALF = [0.5, 0.5, 0.5]


def vit_mae(model: Any, images: Tensor) -> Tensor:
    model.config.mask_ratio = 0.0
    first: Tensor = model(images, noise=torch.arange(16.0).expand(len(images), -1)).last_hidden_state[:, 0]
    return first


def first_token(model: Any, images: Tensor) -> Tensor:
    token: Tensor = model(images).last_hidden_state[:, 0]
    return token


def mean_of_tokens(model: Any, images: Tensor) -> Tensor:
    mean: Tensor = model(images).last_hidden_state.mean(1)
    return mean


def mean_of_positions(model: Any, images: Tensor) -> Tensor:
    mean: Tensor = model(images).last_hidden_state.mean((2, 3))
    return mean


def pooled(model: Any, images: Tensor) -> Tensor:
    output: Tensor = model(images).pooler_output
    return output


MODELS: dict[str, tuple[str, dict[str, Any], Callable[[Any, Tensor], Tensor]]] = {
    "vit_mae": ("ViTMAE", SMALL, vit_mae),
    "ijepa": ("IJepa", SMALL, mean_of_tokens),
    "vit_msn": ("ViTMSN", SMALL, first_token),
    "data2vec": ("Data2VecVision", SMALL, first_token),
    "siglip": ("SiglipVision", SMALL, pooled),
    "siglip without its head": ("SiglipVision", {**SMALL, "vision_use_head": False}, mean_of_tokens),
    "poolformer": ("PoolFormer", {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}, mean_of_positions),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_vector_is_of_the_whole_image(name: str, tmp_path: Path, slices: Any, pixels: Any) -> None:
    """C3: the class token only where there is one, else the mean; no masking; one image twice is one vector."""
    kind, options, oracle = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options)).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": HALF, "image_std": HALF, "size": SIDE})
    )
    spec = model_spec(f"hf:{tmp_path}")
    images = slices(3, SIDE)
    encoder = Encoder(spec, resolve_weights(spec), batch_size=2)
    found = encoder.embed(images)
    with torch.inference_mode():
        expected = oracle(model, pixels(images, HALF, HALF)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(encoder.embed(images[[2, 0, 0]]), found[[2, 0, 0]])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Detr", {}), ("DeformableDetr", {}), ("Yolos", {**SMALL, "image_size": [32, 32]}), ("Mask2Former", {})],
)
def test_models_whose_outputs_are_of_objects_are_refused(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """C3: the answer to an object query is no image."""
    getattr(transformers, f"{kind}Config")(**options).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="a detector or an encoder-decoder"):
        model_spec(f"hf:{tmp_path}")


def test_images_that_are_put_into_one_row_are_refused(tmp_path: Path) -> None:
    """C3: this model strings the patches of all images of a batch together."""
    transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**SMALL)).save_pretrained(tmp_path)
    spec = model_spec(f"hf:{tmp_path}")
    with pytest.raises(UsageError, match="gives 1 vectors for 2 images"):
        Encoder(spec, resolve_weights(spec))


class Random(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + torch.rand(len(images), 3)


class LastOfBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[[-1] * len(images)]


def test_vectors_that_depend_on_chance_or_on_other_images_are_refused() -> None:
    """C3: one image twice, in another place of the batch."""
    check_repeatable(nn.Flatten(), 8, "flat")
    state = torch.random.get_rng_state()
    with pytest.raises(UsageError, match=r"random: gives the same image different vectors \(cosine 0\."):
        check_repeatable(Random(), 8, "random")
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(UsageError, match="different vectors"):
        check_repeatable(LastOfBatch(), 8, "last")


class Maps(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, pixel_values: Tensor) -> Any:
        features = torch.arange(float(np.prod(self.shape))).view(1, *self.shape).expand(len(pixel_values), *self.shape)
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=features)


@pytest.mark.parametrize(("shape", "axes"), [((5, 2, 2), (1, 2)), ((2, 2, 5), (0, 1)), ((4, 4, 4), (1, 2))])
def test_positions_are_told_from_channels(shape: tuple[int, ...], axes: tuple[int, int]) -> None:
    """C3: some models have their channels last."""
    expected = np.arange(float(np.prod(shape))).reshape(shape).mean(axes)
    found = Pooled(Maps(*shape), use_pooler=True)(torch.zeros(2, 3, 8, 8))
    np.testing.assert_allclose(found, np.stack([expected, expected]))
    with pytest.raises(ValueError, match="do not tell pixels from channels"):
        Pooled(Maps(2, 3, 5), use_pooler=True)(torch.zeros(2, 3, 8, 8))
