"""DreamSim as published: a release's files with random weights, and the dreamsim package's own model of them."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from medret.models.dreamsim import DreamSim

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import dreamsim
    from dreamsim.feature_extraction.extractor import ViTExtractor

RANK = 16
WIDTH = 768
BACKBONE = "checkpoints/dino_vitbase16_pretrain.pth"  # where torch.hub keeps what the package fetches as code


@contextlib.contextmanager
def published(kind: str) -> Iterator[tuple[Path, Any]]:
    """The files of one kind of DreamSim, gone afterwards, and the package's model: adapters apart, attention eager.

    kind: `ensemble` or `clip_vitb32`.
    """
    torch.manual_seed(0)
    model = DreamSim(kind)
    branches: dict[str, Any] = dict(zip(model.model_types, model.branches, strict=True))

    def made(model_type: str, _folder: str) -> Any:
        branch = branches[model_type]
        return (branch.vit, branch.proj.detach()) if branch.is_clip else branch.vit

    with tempfile.TemporaryDirectory() as scratch:
        _write(Path(scratch), kind, branches)
        with (
            patch.object(ViTExtractor, "create_model", made),
            contextlib.redirect_stdout(sys.stderr),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of the package: deprecated torch functions, wrapping its model twice
            package, _ = dreamsim.dreamsim(device="cpu", cache_dir=scratch, dreamsim_type=kind)
        yield Path(scratch), package


def _write(folder: Path, kind: str, branches: dict[str, Any]) -> None:
    (folder / "checkpoints").mkdir()
    adapters: dict[str, Tensor] = {}
    for place, (model_type, branch) in enumerate(branches.items()):
        state = branch.vit.state_dict()
        if branch.is_clip:
            state |= {"proj": branch.proj.detach()}
            torch.save({"state_dict": state}, folder / f"{model_type}_pretrain.pth.tar")
        else:
            torch.save(state, folder / BACKBONE)
            (folder / f"{model_type}_pretrain.pth").touch()  # a head that the package loads and does not use
        for block in range(len(branch.vit.blocks)):
            layer = f"base_model.model.extractor_list.{place}.model.blocks.{block}.attn.qkv"
            adapters[f"{layer}.lora_A.weight"] = torch.randn(RANK, WIDTH) * WIDTH**-0.5
            adapters[f"{layer}.lora_B.weight"] = torch.randn(3 * WIDTH, RANK) * RANK**-0.5
    lora = folder / ("ensemble_lora" if kind == "ensemble" else f"{kind}_single_lora")
    lora.mkdir()
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK / 2, "lora_dropout": 0.3, "bias": "none",
        "target_modules": ["qkv"], "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None,
        "task_type": None, "base_model_name_or_path": None,
    }  # fmt: skip
    (lora / "adapter_config.json").write_text(json.dumps(config))
    save_file(adapters, lora / "adapter_model.safetensors")
