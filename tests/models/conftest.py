"""Checkpoints in published layouts, made with random values, and slices to embed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from medret.models import Encoder, model_spec, resolve_weights

Slices = NDArray[np.uint8]
Embed = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other waste more than they gain where other processes keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for checkpoints of real size, gone after the test (pytest keeps those of its last runs)."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def smooth_slices(count: int, image_size: int, seed: int = 0) -> Slices:
    """Grey images with structure at a scale that a network sees, unlike noise."""
    draws = torch.rand(count, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    images = nn.functional.interpolate(draws, (image_size, image_size), mode="bicubic", align_corners=False)
    return (images[:, 0].clamp(0, 1) * 255).to(torch.uint8).numpy()


@pytest.fixture(scope="session")
def slices() -> Callable[..., Slices]:
    """`slices(count, image_size, seed)`."""
    return smooth_slices


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Tensor]:
    """What a reference package is fed: three channels, normalised by its published mean and std."""

    def normalise(images: Slices, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        grey = torch.from_numpy(images)[:, None].float().div(255).expand(-1, 3, -1, -1)
        return (grey - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    return normalise


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module, int], Mapping[str, Tensor]]:
    """Give a module weights with a spread like trained ones; quicker and less tame than its own initialisation."""

    def fill(module: nn.Module, seed: int = 0) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for key, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                state[key] = tensor.clone()
                continue
            draw = torch.empty(tensor.shape).uniform_(-1.7, 1.7, generator=generator)  # variance 1
            if key.endswith("running_var"):
                state[key] = draw.abs() + 0.5
            elif tensor.ndim == 1 and key.endswith("weight"):  # gains of norms
                state[key] = 1 + 0.1 * draw
            elif tensor.ndim >= 2 and key.endswith("weight"):
                state[key] = draw * tensor[0].numel() ** -0.5
            else:
                state[key] = 0.1 * draw
        module.load_state_dict(state)
        module.eval().requires_grad_(False)
        return state

    return fill


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of timm's own miniature network, a megabyte."""
    path = tmp_path_factory.mktemp("small") / "model.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return path


@pytest.fixture
def embed(scratch: Path) -> Embed:
    """Save tensors as a file and embed with medret's real loading code: `embed(name, state, images, suffix=".pth")`."""

    def run(name: str, state: Mapping[str, object], images: Slices, suffix: str = ".pth") -> NDArray[np.float32]:
        path = scratch / f"checkpoint{suffix}"
        if suffix == ".safetensors":
            save_file({key: value.contiguous() for key, value in state.items() if isinstance(value, Tensor)}, path)
        else:
            torch.save(dict(state), path)
        spec = model_spec(name)
        encoder = Encoder(spec, resolve_weights(spec, str(path)), batch_size=len(images))
        return encoder.embed(images)

    return run


@pytest.fixture(scope="session")
def cosines() -> Callable[..., NDArray[np.float64]]:
    """Cosine of each pair of rows."""

    def rowwise(first: object, second: object) -> NDArray[np.float64]:
        left, right = np.asarray(first, np.float64), np.asarray(second, np.float64)
        assert left.shape == right.shape
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        product: NDArray[np.float64] = (left * right).sum(1) / norms
        return product

    return rowwise
