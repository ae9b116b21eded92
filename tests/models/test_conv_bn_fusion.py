from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from medret.models.fusing import fuse_batch_norms


def norms(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def lived_in(model: nn.Module) -> nn.Module:
    """With norms as training leaves them: of every scale, with means of their own."""
    draws = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(generator=draws)
            layer.running_var.uniform_(0.2, 5, generator=draws)
            layer.weight.data.uniform_(0.3, 2, generator=draws)
            layer.bias.data.normal_(generator=draws)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_a_fused_network_gives_the_same_without_norms(name: str) -> None:
    model = lived_in(timm.create_model(name, num_classes=0))
    images = torch.rand(2, 3, 160, 160)
    expected = model(images)
    fused = fuse_batch_norms(model, 160)
    assert norms(fused) == 0 < norms(model)
    torch.testing.assert_close(fused(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(images), expected)  # the model itself stays as it was


def test_a_network_without_norms_stays() -> None:
    model = timm.create_model("test_vit", num_classes=0).eval()
    assert fuse_batch_norms(model, 160) is model


class Twice(nn.Module):
    """A convolution that serves more than its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        output: Tensor = (features + self.norm(features)).mean((2, 3))
        return output


def test_a_convolution_that_serves_more_than_its_norm_keeps_it() -> None:
    model = lived_in(Twice())
    assert fuse_batch_norms(model, 16) is model


def test_a_norm_before_its_convolution_stays() -> None:
    model = lived_in(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten()))
    images: Any = torch.rand(1, 3, 8, 8)
    fused = fuse_batch_norms(model, 8)
    assert norms(fused) == 1
    torch.testing.assert_close(fused(images), model(images))
