"""What a network is fed under a contract, down to the number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medret.models import Encoder, ModelSpec, model_spec, resolve_weights
from medret.recipe import Contract, stack_dtype, stack_shape

SMALL = "timm:test_vit"
MEAN, STD = (40.0, 50.0, 60.0), (300.0, 200.0, 100.0)


@pytest.fixture
def spec() -> ModelSpec:
    return model_spec(SMALL)


def fed(spec: ModelSpec, images: Any, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The images that reach the network."""
    encoder = Encoder(spec, resolve_weights(spec, "random"), batch_size=len(images))
    seen = []

    def look(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.clone())
        return torch.ones(len(batch), spec.dim)

    monkeypatch.setattr(encoder, "_model", look)
    encoder.embed(images)
    return seen[0]


def drawn(spec: ModelSpec, count: int = 3) -> Any:
    shape, dtype = (count, *stack_shape(spec.images)), stack_dtype(spec.images)
    values = np.random.default_rng(0).normal(100, 60, shape)
    return values.clip(0, 255).astype(dtype) if dtype == np.uint8 else (values * 10).astype(dtype)


def test_windows_are_normalised_channel_by_channel(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(spec, contract=Contract(windows_hu=((-1000, 1000), (0, 80), (-135, 215))))
    images = drawn(spec)
    expected = (images / 255 - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    np.testing.assert_allclose(fed(spec, images, monkeypatch), expected, atol=1e-5)


def test_real_values_have_mean_and_std_in_their_own_unit(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(spec, contract=Contract(values="real"), mean=MEAN, std=STD)
    images = drawn(spec)
    expected = (images[:, None] - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(fed(spec, images, monkeypatch), expected, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"values": "real"}, {"windows_hu": ((0, 80),) * 3}])
def test_each_image_by_its_own_mean(fields: dict[str, Any], spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(spec, contract=Contract(**fields, normalise="image"))
    images = drawn(spec)
    images[1] = 7  # constant: centred, and not divided by zero
    found = fed(spec, images, monkeypatch).numpy()
    assert found.shape == (3, *spec.input_shape)
    for image, network_input in zip(images.astype(np.float64), found, strict=True):
        expected = (image - image.mean()) / (image.std(ddof=1) or 1)
        np.testing.assert_allclose(network_input, np.broadcast_to(expected, network_input.shape), atol=1e-4)


def test_images_of_another_contract_are_refused(spec: ModelSpec) -> None:
    """An encoder never reads the images of one contract as those of another."""
    contracts = [Contract(), Contract(values="real"), Contract(windows_hu=((0, 80),) * 3)]
    specs = [replace(spec, contract=contract) for contract in contracts]
    for mine in specs:
        encoder = Encoder(mine, resolve_weights(mine, "random"), batch_size=3)
        assert encoder.embed(drawn(mine)).shape == (3, mine.dim)
        for other in specs:
            if other != mine:
                with pytest.raises(ValueError, match="slices are"):
                    encoder.embed(drawn(other))
