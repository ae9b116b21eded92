"""DreamSim from its published layout gives what dreamsim.dreamsim gives from the same folder.

The package fetches its DINO backbones as code; the tests hand it the same architectures instead.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dreamsim
import numpy as np
import pytest
import torch
from dreamsim.feature_extraction.vision_transformer import DINOHead, vit_base
from safetensors.torch import save_file
from torch import Tensor

from medret.errors import WeightsError
from medret.models import Encoder, Weights, model_spec, resolve_weights
from medret.models.checkpoint import build
from medret.models.dreamsim import DreamSim, FusedAttention

RANK = 4
BRANCHES = {
    "ensemble": ("dino_vitb16", "clip_vitb16", "open_clip_vitb16"),
    "clip_vitb32": ("clip_vitb32",),
    "dinov2_vitb14": ("dinov2_vitb14",),
}


def as_vit(model_type: str) -> Any:
    image_size = 518 if "dinov2" in model_type else 224
    return build(
        Weights("", "", ""), lambda: vit_base(patch_size=int(model_type.split("vitb")[1]), img_size=[image_size])
    )


def backbone_file(model_type: str) -> str:
    return {"dino_vitb16": "dino_vitbase16_pretrain.pth", "dinov2_vitb14": "dinov2_vitb14_pretrain.pth"}[model_type]


def write_release(folder: Path, kind: str, randomise: Any, adapter: str = "adapter_model.safetensors") -> None:
    """A release's files for one kind of DreamSim and what torch.hub keeps in checkpoints/, in half precision."""
    (folder / "checkpoints").mkdir(parents=True)
    lora: dict[str, Tensor] = {}
    draws = torch.Generator().manual_seed(7)
    for index, model_type in enumerate(BRANCHES[kind]):
        state = {key: value.half() for key, value in randomise(as_vit(model_type), index).items()}
        if "clip" in model_type:
            state["pos_drop.weight"], state["pos_drop.bias"] = torch.ones(768).half() * 1.1, torch.zeros(768).half()
            state["proj"] = torch.randn(768, 512, generator=draws) * 768**-0.5
            torch.save({"state_dict": state}, folder / f"{model_type}_pretrain.pth.tar")
        else:
            if model_type == "dinov2_vitb14":
                state["mask_token"] = torch.zeros(1, 768).half()
                for block in range(12):
                    for scale in ("ls1", "ls2"):
                        gamma = torch.rand(768, generator=draws) * 0.5 + 0.5
                        state[f"blocks.{block}.{scale}.gamma"] = gamma.half()
            torch.save(state, folder / "checkpoints" / backbone_file(model_type))
        for block in range(12):
            key = f"base_model.model.extractor_list.{index}.model.blocks.{block}.attn.qkv"
            lora[f"{key}.lora_A.weight"] = torch.randn(RANK, 768, generator=draws) * 768**-0.5
            lora[f"{key}.lora_B.weight"] = torch.randn(3 * 768, RANK, generator=draws)
    if kind == "ensemble":  # the projection head that the package loads and does not use
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the package's head uses a deprecated weight_norm
            head = DINOHead(768, 2048).state_dict()
        head["last_layer.weight"] = head.pop("last_layer.weight_v")
        torch.save(
            {"student": {f"module.head.{key}": value for key, value in head.items()}},
            folder / "dino_vitb16_pretrain.pth",
        )
    elif kind == "dinov2_vitb14":
        (folder / backbone_file(kind)).write_bytes(b"the package asks for this file and reads the one in checkpoints/")
    adapters = folder / ("ensemble_lora" if kind == "ensemble" else f"{kind}_single_lora")
    adapters.mkdir()
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 2, "lora_dropout": 0.3, "bias": "none", "target_modules": ["qkv"],
        "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None, "task_type": None,
        "base_model_name_or_path": None,
    }  # fmt: skip
    (adapters / "adapter_config.json").write_text(json.dumps(config))
    if adapter.endswith(".bin"):
        torch.save(lora, adapters / adapter)
    else:
        save_file(lora, adapters / adapter)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str, Tensor], Tensor]]:
    """`package(folder, kind, images)`: the package's own embedding."""

    def fetch(repository: str, model_type: str) -> Any:
        state = torch.load(Path(torch.hub.get_dir()) / "checkpoints" / backbone_file(model_type), weights_only=True)
        state.pop("mask_token", None)
        model = as_vit(model_type)
        gammas = {key: state.pop(key).float() for key in list(state) if key.endswith(".gamma")}
        model.load_state_dict(state)
        for key, gamma in gammas.items():  # facebookresearch/dinov2 scales what each half block adds
            block = model.blocks[int(key.split(".")[1])]
            layer = block.attn.proj if ".ls1." in key else block.mlp.fc2
            layer.register_forward_hook(lambda module, args, output, gamma=gamma: output * gamma)
        return model

    def run(folder: Path, kind: str, images: Tensor) -> Tensor:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the package wraps its model twice
            model, _ = dreamsim.dreamsim(device="cpu", cache_dir=str(folder), dreamsim_type=kind)
            embedding: Tensor = model.embed(images)
            return embedding

    before = torch.hub.get_dir()
    monkeypatch.setattr(torch.hub, "load", fetch)
    yield run
    torch.hub.set_dir(before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ensemble", "clip_vitb32", "dinov2_vitb14"])
def test_equals_the_package(
    kind: str, package: Any, scratch: Path, slices: Any, pixels: Any, randomise: Any, cosines: Any
) -> None:
    adapter = "adapter_model.bin" if kind == "clip_vitb32" else "adapter_model.safetensors"
    write_release(scratch, kind, randomise, adapter)
    images = slices(2, 224)
    expected = package(scratch, kind, pixels(images, (0, 0, 0), (1, 1, 1))).numpy()
    spec = model_spec("dreamsim" if kind == "ensemble" else f"dreamsim_{kind}")
    weights = resolve_weights(spec, str(scratch))
    found = Encoder(spec, weights, batch_size=2).embed(images)
    assert found.shape == (2, spec.dim) == expected.shape
    assert np.abs(found[0] - found[1]).max() > 50 * np.abs(found - expected).max()
    assert cosines(found, expected).min() > 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-6)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, randomise: Any) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("release")
    write_release(folder, "clip_vitb32", randomise)
    yield folder
    shutil.rmtree(folder)


def test_a_zip_gives_the_same_weights_as_the_folder(
    release: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(scratch / "cache"))
    spec = model_spec("dreamsim_clip_vitb32")
    with zipfile.ZipFile(scratch / "checkpoint.zip", "w") as archive:
        archive.writestr("../../outside.txt", "a name that would leave the folder")
        for path in sorted(release.rglob("*")):
            archive.write(path, f"dreamsim/{path.relative_to(release)}")
    zipped = resolve_weights(spec, str(scratch / "checkpoint.zip"))
    plain = resolve_weights(spec, str(release))
    assert zipped.sha256 == plain.sha256
    assert set(zipped.files) == {"clip_vitb32", "lora_config", "lora_weights"}
    assert all(path.is_relative_to(scratch / "cache") for path in zipped.files.values())
    assert not any("outside.txt" in names for _, _, names in os.walk(scratch.parent))  # beside what other tests left


def test_the_backbone_may_lie_beside_the_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path / "cache"))
    spec = model_spec("dreamsim_dino_vitb16")
    with zipfile.ZipFile(tmp_path / "checkpoint.zip", "w") as archive:
        archive.writestr("dino_vitb16_single_lora/adapter_config.json", "{}")
        archive.writestr("dino_vitb16_single_lora/adapter_model.safetensors", "")
    with pytest.raises(WeightsError, match=r"no checkpoints/dino_vitbase16_pretrain\.pth or dino_vitbase16_"):
        resolve_weights(spec, str(tmp_path / "checkpoint.zip"))
    (tmp_path / "dino_vitbase16_pretrain.pth").write_bytes(b"backbone")
    weights = resolve_weights(spec, str(tmp_path / "checkpoint.zip"))
    assert weights.files["backbone"].read_bytes() == b"backbone"


def test_a_file_that_is_no_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "dreamsim.zip").write_bytes(b"not a zip at all")
    with pytest.raises(WeightsError, match=r"dreamsim\.zip.*expected a folder or a zip"):
        resolve_weights(model_spec("dreamsim"), str(tmp_path / "dreamsim.zip"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "not a plain LoRA"),
        ({"r": None}, "not a plain LoRA"),
        ({"bias": "all"}, "not a plain LoRA"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    change: dict[str, Any], message: str, release: Path, tmp_path: Path
) -> None:
    for path in release.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(release)
            target.parent.mkdir(exist_ok=True)
            target.hardlink_to(path)
    path = tmp_path / "clip_vitb32_single_lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**config, **change}))
    spec = model_spec("dreamsim_clip_vitb32")
    with pytest.raises(WeightsError, match=message):
        Encoder(spec, resolve_weights(spec, str(tmp_path)))


def test_an_adapter_of_unknown_layers_is_refused(release: Path, tmp_path: Path) -> None:
    spec = model_spec("dreamsim_clip_vitb32")
    weights = resolve_weights(spec, str(release))
    save_file(
        {"base_model.model.extractor_list.3.model.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 2)}, tmp_path / "l"
    )
    from medret.models.weights import files_sha256

    files = {**weights.files, "lora_weights": tmp_path / "l"}
    with pytest.raises(WeightsError, match="does not adapt a layer"):
        Encoder(spec, Weights(spec.name, files_sha256(files), "", files))


def test_attention_is_fused_everywhere() -> None:
    from medret.models.encoder import load_model

    spec = model_spec("dreamsim_clip_vitb32")
    model = load_model(spec, resolve_weights(spec, "random"))
    assert isinstance(model, DreamSim)
    assert sum(isinstance(module, FusedAttention) for module in model.modules()) == 12
