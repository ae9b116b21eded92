from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from medret.models import fusing
from medret.models.encoder import in_bf16
from medret.models.fusing import Fused, fuse_batch_norms, fuse_layers, is_available

pytestmark = pytest.mark.skipif(not is_available(), reason="this torch has no oneDNN")


def fused(model: nn.Module) -> int:
    return sum(isinstance(layer, Fused) for layer in model.modules())


def plain(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules())


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ready(model: nn.Module) -> Any:
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext", "tf_mobilenetv3_small_075"]
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_fused_network_gives_the_same(name: str, layout: Any) -> None:
    torch.manual_seed(0)
    model = fuse_batch_norms(ready(timm.create_model(name, num_classes=0)), 160).to(memory_format=layout)
    images = drawn(3, 3, 160, 160).contiguous(memory_format=layout)
    expected, layers = model(images), plain(model)
    fuse_layers(model, images[:1], 3)
    assert (fused(model), plain(model)) == (layers, 0)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_in_bf16_it_stays_as_near_to_float32(name: str) -> None:
    torch.manual_seed(0)
    model = ready(timm.create_model(name, num_classes=0))
    images = drawn(3, 3, 160, 160)
    exact = model(images)
    half = in_bf16(model)
    taken = images if name == "test_efficientnet" else images.bfloat16()
    before = half(taken).float()
    fuse_layers(half, taken[:1], 3)
    # Without instructions for bf16, oneDNN refuses its layers, and they stay as they are.
    assert (fused(half) > 0) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert torch.dist(half(taken).float(), exact) <= 1.2 * torch.dist(before, exact)


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (9, 9), (12, 10)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_on_one_side(size: tuple[int, int], kernel: int, stride: int) -> None:
    layer = ready(nn.Sequential(Conv2dSame(4, 6, kernel, stride)))
    images = drawn(2, 4, *size)
    expected = layer(images)
    fuse_layers(layer, images[:1], 2)
    assert fused(layer) == 1
    torch.testing.assert_close(layer(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(5, 5, 3, 2, 1, dilation=2, groups=5, bias=False), nn.Linear(8, 3)])
@pytest.mark.parametrize(
    "activation", [nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.Tanh()]
)
def test_activations(layer: nn.Module, activation: nn.Module) -> None:
    model = ready(nn.Sequential(layer, nn.Identity(), activation))
    features = 3 * drawn(2, 5, 12, 8)
    expected = model(features)
    fuse_layers(model, features[:1], 2)
    assert fused(model) == 1
    assert isinstance(model[2], nn.Tanh if isinstance(activation, nn.Tanh) else nn.Identity)
    torch.testing.assert_close(model(features), expected, rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    """The sum is made in place: what the activation takes is the convolution's tensor, but not what that gave."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.activation = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        features += images
        output: Tensor = self.activation(features)
        return output


def test_an_activation_after_a_sum_stays() -> None:
    model, images = ready(Residual()), drawn(2, 3, 8, 8)
    expected = model(images)
    fuse_layers(model, images[:1], 2)
    assert isinstance(model.convolution, Fused)
    assert isinstance(model.activation, nn.ReLU)
    torch.testing.assert_close(model(images), expected)


class Taps(nn.Module):
    """What the convolution gives is used without the activation too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.activation = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        return torch.cat([features, self.activation(features)])


class Looks(nn.Module):
    """Its code looks into the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layer(features.to(self.layer.weight.dtype))
        return output


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layer(self.layer(features))
        return output


class Named(nn.Module):
    """One layer, called with its input and by its input's name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layer(input=self.layer(features))
        return output


@pytest.mark.parametrize("kind", [Taps, Looks, Twice, Named])
def test_what_would_change_or_fail_stays_whole(kind: type[nn.Module]) -> None:
    model, features = ready(kind()), drawn(2, 3, 8, 8)
    expected, layers = model(features), list(model.modules())
    assert fuse_layers(model, features[:1], 2) is model
    assert list(model.modules()) == layers
    torch.testing.assert_close(model(features), expected, rtol=0, atol=0)


class OwnConvolution(nn.Conv2d):
    """Does something else than a convolution."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


@pytest.mark.parametrize(
    "layer",
    [
        OwnConvolution(3, 4, 3),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, dtype=torch.float64),
    ],
)
def test_other_layers_stay(layer: nn.Module) -> None:
    model = ready(nn.Sequential(layer))
    fuse_layers(model, drawn(1, 3, 8, 8).to(next(layer.parameters()).dtype), 2)
    assert model[0] is layer


def test_a_torch_without_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing, "OPERATIONS", object())
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3)))
    fuse_layers(model, drawn(1, 3, 8, 8), 2)
    assert isinstance(model[0], nn.Conv2d)


def test_a_processor_without_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("mkldnn_bf16 needs avx512")

    monkeypatch.setattr(fusing.OPERATIONS, "_reorder_convolution_weight", refuse)
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3)))
    fuse_layers(model, drawn(1, 3, 8, 8), 2)
    assert isinstance(model[0], nn.Conv2d)
