"""Files that are not what they should be end in a WeightsError that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from medret.errors import WeightsError
from medret.models import Encoder, model_spec, resolve_weights
from medret.models.encoder import load_model

SMALL = "timm:test_efficientnet"  # timm's own miniature, a megabyte


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("harmed"),)  # type: ignore[return-value]


def checkpoint_of(state: Any, path: Path) -> str:
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("wrong", ["missing", "unexpected", "shape", "other model", "nan", "no tensors", "list"])
def test_another_layout_is_refused_with_what_was_found(wrong: str, tmp_path: Path) -> None:
    state: Any = dict(timm.create_model("test_efficientnet").state_dict())
    expected = {
        "missing": "1 missing (conv_stem.weight)",
        "unexpected": "1 unexpected (surprise)",
        "shape": "1 of another shape (conv_stem.weight (2, 2) instead of",
        "other model": "missing",
        "nan": "conv_stem.weight holds values that are not finite",
        "no tensors": "holds no tensors by name (its keys: epoch)",
        "list": "holds a list, expected tensors by name",
    }[wrong]
    if wrong == "missing":
        del state["conv_stem.weight"]
    elif wrong == "unexpected":
        state["surprise"] = torch.ones(3)
    elif wrong == "shape":
        state["conv_stem.weight"] = torch.ones(2, 2)
    elif wrong == "nan":
        state["conv_stem.weight"] = torch.full_like(state["conv_stem.weight"], torch.nan)
    elif wrong == "other model":
        state = timm.create_model("test_vit").state_dict()
    else:
        state = {"no tensors": {"epoch": 3}, "list": [1, 2]}[wrong]
    spec, path = model_spec(SMALL), tmp_path / "some.pth"
    with pytest.raises(WeightsError) as caught:
        load_model(spec, resolve_weights(spec, checkpoint_of(state, path)))
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "harmful.pth"
    torch.save({"conv_stem.weight": Harmful()}, path, _use_new_zipfile_serialization=not legacy)
    spec = model_spec(SMALL)
    with pytest.raises(WeightsError, match="reading it would run code"):
        load_model(spec, resolve_weights(spec, str(path)))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.98])
def test_a_truncated_file_is_refused(suffix: str, keep: Any, small_file: Path, tmp_path: Path) -> None:
    if suffix == ".pth":
        torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "whole.pth")
    data = (small_file if suffix == ".safetensors" else tmp_path / "whole.pth").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    spec = model_spec(SMALL)
    with pytest.raises(WeightsError, match=f"cut{suffix}"):
        load_model(spec, resolve_weights(spec, str(path)))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.pth"
    path.write_bytes(b"<!doctype html><html>404</html>" * 20)
    spec = model_spec(SMALL)
    with pytest.raises(WeightsError, match=r"page\.pth"):
        load_model(spec, resolve_weights(spec, str(path)))


def test_a_file_changed_after_resolving_is_refused(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(small_file.read_bytes())
    spec = model_spec(SMALL)
    weights = resolve_weights(spec, str(path))
    path.write_bytes(b"other")
    with pytest.raises(WeightsError, match="changed: sha256"):
        load_model(spec, weights)
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        load_model(spec, weights)


def test_weights_of_another_model_are_refused(small_file: Path) -> None:
    weights = resolve_weights(model_spec(SMALL), str(small_file))
    with pytest.raises(WeightsError, match="not of dinov1"):
        load_model(model_spec("dinov1"), weights)


def test_the_shared_mobilenet_loads(shared_data: Path) -> None:
    spec = model_spec("mobilenetv2_100")
    weights = resolve_weights(spec, str(shared_data / "weights" / "mobilenetv2_100.in1k.safetensors"))
    vectors = Encoder(spec, weights, batch_size=1).embed(np.full((1, 224, 224), 90, np.uint8))
    assert vectors.shape == (1, 1440)
    assert np.isfinite(vectors).all()
