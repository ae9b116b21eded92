"""Inner layers beside the output."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import timm
import torch

from medret.models import Encoder, model_spec, resolve_weights
from medret.models.timm_models import WithLayers

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("name", "stage"), [("efficientnet_lite0", 192), ("mobilenetv2_100", 160)])
def test_the_inner_part_is_the_pooled_stage_at_the_length_of_the_output(
    name: str, stage: int, slices: Any, pixels: Any, cosines: Any
) -> None:
    spec = model_spec(name)
    weights = resolve_weights(spec, "random:3")
    images = slices(3, 224)
    vectors = Encoder(spec, weights, batch_size=2).embed(images)
    assert vectors.shape == (3, 1280 + stage) == (3, spec.dim)
    net: Any = Encoder(spec, weights, batch_size=2)._model
    reference = net.model
    with torch.inference_mode():
        images_in = pixels(images, HALF, HALF)
        inner = reference.blocks[:6](reference.bn1(reference.conv_stem(images_in))).mean((2, 3)).numpy()
        output = reference(images_in).numpy()
    np.testing.assert_allclose(vectors[:, :1280], output, rtol=1e-3, atol=1e-4)
    assert cosines(vectors[:, 1280:], inner).min() > 0.99999
    lengths = np.linalg.norm(vectors[:, 1280:], axis=1) / np.linalg.norm(output, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-3)


def test_both_parts_count_alike_in_a_cosine() -> None:
    """With the inner part at the output's length, the cosine of two vectors is the mean of their parts' cosines."""
    model = timm.create_model("mobilenetv2_035", num_classes=0).eval()
    with torch.inference_mode():
        vectors = WithLayers(model, ["blocks.5"]).eval()(torch.rand(2, 3, 64, 64)).numpy()
    width = model.num_features
    parts = [vectors[:, :width], vectors[:, width:]]

    def cosine(pair: np.ndarray) -> float:
        return float(pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1]))

    assert cosine(vectors) == pytest.approx(np.mean([cosine(part) for part in parts]), abs=1e-5)


def test_a_silent_layer_stays_zero() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.inner(images * 0).mean((2, 3))
            return pooled + torch.tensor([3.0, 0.0, 4.0])

    vectors = WithLayers(Model(), ["inner"])(torch.ones(1, 3, 4, 4))
    assert vectors.tolist() == [[3, 0, 4, 0, 0, 0]]


def test_threads_that_share_an_encoder_get_the_vectors_that_they_get_alone(slices: Any) -> None:
    spec = model_spec("efficientnet_lite0")
    encoder = Encoder(spec, resolve_weights(spec, "random:3"), batch_size=2, threads=1)
    stacks = [np.ascontiguousarray(slices(4, 224) // (place + 1)) for place in range(4)]
    alone = [encoder.embed(stack) for stack in stacks]
    with ThreadPoolExecutor(len(stacks)) as pool:
        for _ in range(2):
            for vectors, expected in zip(pool.map(encoder.embed, stacks), alone, strict=True):
                np.testing.assert_array_equal(vectors, expected)
