"""Text towers and tokenizers against transformers' and OpenCLIP's own; models of other packages."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medret.errors import MissingPackageError, UsageError, WeightsError
from medret.models import Encoder, ModelSpec, model_names, model_spec, resolve_weights
from medret.models.hub import FileSet
from medret.models.spec import Stated, packaged_spec
from medret.models.words import REFERENCE_TEXTS, TextEncoder, _tokenizer_files, unit
from tests.towers import DIM, announce, small_biomedclip, write_biomedclip, write_two_towers

TEXTS = ["axial CT of the liver with cysts", "brain", "MRI scan of the lung"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which packages are installed."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    packaged_spec.cache_clear()
    yield folder
    packaged_spec.cache_clear()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_words_as_transformers_gives_them(kind: str, tmp_path: Path, slices: Any) -> None:
    model = write_two_towers(kind, tmp_path)
    stated = Stated(contract={"pooling": "projection"}) if kind == "clip" else None
    spec = model_spec(f"hf:some/{kind}", str(tmp_path), stated)
    assert (spec.words, spec.dim) == (kind, DIM)
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    given = tokenizer(TEXTS, padding="max_length", max_length=12, return_tensors="pt")
    images = slices(2, 32)
    pixels = torch.from_numpy(images)[:, None].float().div(127.5).sub(1).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        names = ("input_ids", "attention_mask")
        expected = model.get_text_features(**{name: given[name] for name in names}).pooler_output
        beside = model.get_image_features(pixel_values=pixels).pooler_output
    weights = resolve_weights(spec, str(tmp_path))
    words = TextEncoder(spec, weights, str(tmp_path))
    np.testing.assert_allclose(words.embed(TEXTS), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(words.embed(TEXTS[1:2]), expected[1:2], rtol=1e-3, atol=1e-4)
    found = Encoder(spec, weights, batch_size=2).embed(images)
    np.testing.assert_allclose(found, beside, rtol=1e-3, atol=1e-4)


def test_words_as_openclip_gives_them(tmp_path: Path, package: Path, slices: Any) -> None:
    visual, text = write_biomedclip(tmp_path)
    announce(package, "small_biomedclip", "tests.towers:small_biomedclip")
    spec = model_spec("small_biomedclip")
    assert spec == small_biomedclip()
    tokenizer = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=12, clean="whitespace")
    images = slices(2, 160)
    pixels = torch.from_numpy(images)[:, None].float().div(127.5).sub(1).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected, beside = text(tokenizer(TEXTS)), visual(pixels)
    weights = resolve_weights(spec, str(tmp_path))
    words = TextEncoder(spec, weights, str(tmp_path))
    np.testing.assert_allclose(words.embed(TEXTS), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(Encoder(spec, weights, batch_size=2).embed(images), beside, rtol=1e-3, atol=1e-4)


def test_a_direction_is_seen_from_the_centre_of_words(tmp_path: Path) -> None:
    write_two_towers("siglip", tmp_path)
    spec = model_spec("hf:some/siglip", str(tmp_path))
    words = TextEncoder(spec, resolve_weights(spec, str(tmp_path)), str(tmp_path))
    centre = unit(words.embed(REFERENCE_TEXTS)).mean(axis=0)
    found = words.directions(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, unit(unit(words.embed(TEXTS)) - centre), atol=1e-5)


def test_a_text_that_is_too_long_is_refused(tmp_path: Path) -> None:
    write_two_towers("siglip", tmp_path)
    spec = model_spec("hf:some/siglip", str(tmp_path))
    words = TextEncoder(spec, resolve_weights(spec, str(tmp_path)), str(tmp_path))
    with pytest.raises(UsageError, match=r"'liver liver .*has 22 tokens, hf:some/siglip reads at most 12: shorten it"):
        words.embed(["liver " * 20])
    assert words.embed([]).shape == (0, DIM)


def test_without_a_tokenizer_the_message_says_what_is_needed(tmp_path: Path) -> None:
    write_two_towers("siglip", tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    spec = model_spec("hf:some/siglip", str(tmp_path))
    with pytest.raises(WeightsError, match=r"no tokenizer in .*tokenizer\.json"):
        TextEncoder(spec, resolve_weights(spec, str(tmp_path)), str(tmp_path))


def test_a_tokenizer_that_needs_another_package_names_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("sentencepiece"):
        pytest.skip("it is installed")
    write_two_towers("siglip", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "SiglipTokenizer"}))
    spec = model_spec("hf:some/siglip", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"hf:some/siglip needs .*pip install sentencepiece"):
        TextEncoder(spec, resolve_weights(spec, str(tmp_path)), str(tmp_path))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "rad_dino"])
def test_a_model_without_a_text_tower_is_refused_by_name(name: str) -> None:
    spec = model_spec(name)
    with pytest.raises(UsageError, match=f"{name} has no text tower.*medsiglip"):
        TextEncoder(spec, resolve_weights(spec, "random"), "random")


def test_clip_without_a_projection_has_no_words(tmp_path: Path) -> None:
    write_two_towers("clip", tmp_path)
    assert model_spec("hf:some/clip", str(tmp_path)).words == ""


def test_only_image_text_models_have_a_projection(tmp_path: Path) -> None:
    import transformers

    tiny: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    transformers.ViTModel(transformers.ViTConfig(**tiny)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="has no projection into a space shared with words"):
        model_spec("hf:some/vit", str(tmp_path), Stated(contract={"pooling": "projection"}))


OWN = """
from torch import nn
from medret.models import ModelSpec

def spec():
    return ModelSpec("own_model", "package", "own_package:build", 4, 32, (0.5,) * 3, (0.5,) * 3, "MIT", "none", "here")

def build(spec):
    return nn.Sequential(nn.Conv2d(3, spec.dim, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def test_a_model_of_another_package(package: Path, tmp_path: Path, slices: Any) -> None:
    (package / "own_package.py").write_text(OWN)
    announce(package, "own_model", "own_package:spec")
    assert "own_model" in model_names()
    spec = model_spec("own_model")
    assert isinstance(spec, ModelSpec)
    from own_package import build  # type: ignore[import-not-found]

    reference: nn.Module = build(spec)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    images = slices(2, 32)
    found = Encoder(spec, resolve_weights(spec, str(tmp_path / "model.safetensors"))).embed(images)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(images)[:, None].float().div(127.5).sub(1).expand(-1, 3, -1, -1))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    other = resolve_weights(spec, str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match="not a checkpoint of own_model"):
        Encoder(spec, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise OSError('no licence')", "package towers-of-tests cannot be loaded: OSError: no licence"),
        ("spec = 7", "is int, expected a ModelSpec of that name"),
        (OWN.replace('"own_model"', '"another"'), "is another, expected a ModelSpec of that name"),
    ],
)
def test_a_package_that_brings_no_model_is_named(text: str, message: str, package: Path) -> None:
    sys.modules.pop("own_package", None)
    (package / "own_package.py").write_text(text)
    announce(package, "own_model", "own_package:spec")
    with pytest.raises(UsageError, match=message):
        model_spec("own_model")
    sys.modules.pop("own_package", None)


@pytest.mark.parametrize(
    ("cached", "enough"),
    [
        (("tokenizer.json", "tokenizer_config.json"), True),
        (("tokenizer.json",), False),
        (("vocab.json", "tokenizer_config.json"), False),
        (("vocab.json", "merges.txt", "tokenizer_config.json"), True),
    ],
)
def test_a_tokenizer_in_the_cache_needs_no_network(
    cached: tuple[str, ...], enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def here(origin: Any) -> FileSet:
        return FileSet("here", {name: Path(name) for name in origin.names if name in cached})

    def fetch(origin: Any) -> tuple[FileSet, str]:
        if not (found := here(origin)).entries:
            asked.extend(origin.names)
            raise WeightsError("offline")
        return found, "here"

    monkeypatch.setattr("medret.models.words.fetch", fetch)
    monkeypatch.setattr("medret.models.words.in_cache", here)
    spec = model_spec("medsiglip")
    if enough:
        assert set(_tokenizer_files(spec, None).entries) == set(cached)
    else:
        with pytest.raises(WeightsError, match="offline"):
            _tokenizer_files(spec, None)
    assert len(asked) == 1, "the network is asked once"
