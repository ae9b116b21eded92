"""DreamSim (Fu et al., arXiv 2306.09344): one to three LoRA-tuned ViTs, their features concatenated.

Built from the dreamsim package's own parts (its ViT, its table of models, its normalisation), with three changes that
keep the vectors the same: the LoRA matrices are added to the weights they adapt, attention is torch's fused one, and
the last block of a branch is read directly instead of by a hook. No code is fetched: the package runs hub repositories
to get its DINO and DINOv2 backbones; here the published tensors are loaded into the package's own ViT. For DINOv2 that
ViT resamples the position embedding from 518 to 224 px as facebookresearch/dinov2 does (bicubic, offset 0.1, not
antialiased), whereas the model `dinov2` follows timm.

A DINO branch outputs the class token after its last block, before the final norm; a CLIP branch its projected
embedding. The input lies in [0, 1], and each branch normalises it; from the output its mean is subtracted, then it is
scaled to unit length.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dreamsim.config import dreamsim_args
from dreamsim.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from dreamsim.feature_extraction.load_clip_as_dino import QuickGELU
from dreamsim.feature_extraction.vision_transformer import VisionTransformer, vit_base
from dreamsim.model import normalize_embedding
from torch import Tensor, nn
from torch.nn import functional

from medret.errors import WeightsError
from medret.models.checkpoint import State, build, fill, read_json, read_state
from medret.models.spec import ModelSpec
from medret.models.weights import Weights

_CLIP_DIM = 512
_INIT_STD = 0.02
_DINOV2_SIDE_PX = 518
_ADAPTER_KEY = re.compile(r"base_model\.model\.extractor_list\.(\d+)\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
# Settings of peft that change what an adapter computes; the published adapters leave them off.
_ADAPTER_PLAIN = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


class FusedAttention(nn.Module):
    """The package's attention, without storing the (tokens, tokens) matrix."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        """(n, tokens, width) -> the same shape, and no attention map."""
        n, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(n, count, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], scale=self.scale)
        return self.proj(mixed.transpose(1, 2).reshape(n, count, width)), None


class Branch(nn.Module):
    """One ViT of the ensemble. model_type: its name in the dreamsim package."""

    def __init__(self, model_type: str) -> None:
        super().__init__()
        self.is_clip = "clip" in model_type
        patch_px = int(re.sub(r".*vitb", "", model_type))
        image_size = _DINOV2_SIDE_PX if "dinov2" in model_type else 224
        self.vit: VisionTransformer = vit_base(patch_size=patch_px, img_size=[image_size])
        nn.init.normal_(self.vit.pos_embed, std=_INIT_STD)
        nn.init.normal_(self.vit.cls_token, std=_INIT_STD)
        if self.is_clip:
            self._as_clip(quick_gelu="open_clip" not in model_type)
        mean = OPENAI_CLIP_MEAN if self.is_clip else IMAGENET_DEFAULT_MEAN
        std = OPENAI_CLIP_STD if self.is_clip else IMAGENET_DEFAULT_STD
        self.mean, self.std = tuple(mean), tuple(std)

    def _as_clip(self, quick_gelu: bool) -> None:
        """Apply CLIP's differences: a norm before the blocks, its epsilon, its activation, a projection at the end."""
        self.vit.pos_drop = nn.LayerNorm(self.vit.embed_dim)
        self.proj = nn.Parameter(torch.randn(self.vit.embed_dim, _CLIP_DIM) * self.vit.embed_dim**-0.5)
        for module in self.vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5
        if quick_gelu:
            for block in self.vit.blocks:
                block.mlp.act = QuickGELU()

    def fuse(self) -> None:
        """Replace eager attention by the fused one."""
        for block in self.vit.blocks:
            block.attn = FusedAttention(block.attn)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) float32 in [0, 1] -> (n, 768) or, for CLIP, (n, 512)."""
        mean, std = _channels(self.mean, images.device), _channels(self.std, images.device)
        pixels = ((images - mean) / std).to(self.vit.cls_token.dtype)
        if self.is_clip:
            return self.vit(pixels) @ self.proj  # type: ignore[no-any-return]
        tokens = self.vit.prepare_tokens(pixels)
        for block in self.vit.blocks:
            tokens = block(tokens)
        return tokens[:, 0]  # type: ignore[no-any-return]


class DreamSim(nn.Module):
    """The branches of one entry of the package's table. kind: its key there, such as `ensemble`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model_types: list[str] = dreamsim_args["model_config"][kind]["model_type"].split(",")
        self.branches = nn.ModuleList(Branch(model_type) for model_type in self.model_types)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 224, 224) float32 in [0, 1] -> (n, dim) float32 of unit length."""
        embedding = torch.cat([branch(images) for branch in self.branches], dim=-1)
        unit: Tensor = normalize_embedding(embedding.float())
        return unit


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, 3, 1, 1) on the device, copied there once: a copy per pass would make the GPU wait for the host."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def load_dreamsim(spec: ModelSpec, weights: Weights) -> DreamSim:
    """Load the model, with its adapters merged and its attention fused. Raises WeightsError."""
    model = build(weights, lambda: DreamSim(spec.architecture))
    if not weights.random:
        adapters = _read_adapters(weights.files, len(model.branches))
        for index, (model_type, branch) in enumerate(zip(model.model_types, model.branches, strict=True)):
            state, path = _branch_state(model_type, weights.files)  # one branch in memory at a time
            _merge(adapters[index], state, weights.files["lora_weights"])
            fill(branch, _merge_layer_scale(state), path, spec.name)
    for branch in model.branches:
        assert isinstance(branch, Branch)
        branch.fuse()
    return model


def _branch_state(model_type: str, files: Mapping[str, Path]) -> tuple[State, Path]:
    """Read the published tensors of one branch, under the names of `Branch`."""
    path = files.get(model_type, files.get("backbone"))
    if path is None or ("clip" in model_type) != (model_type in files):
        raise WeightsError(f"weights of DreamSim: no file for its branch {model_type} among {sorted(files)}")
    state = read_state(path)
    state.pop("mask_token", None)  # used by DINOv2 in training only
    return {key if key == "proj" else f"vit.{key}": value for key, value in state.items()}, path


def _read_adapters(files: Mapping[str, Path], branches: int) -> list[dict[str, dict[str, Tensor]]]:
    """For each branch: adapted tensor -> {"A": (rank, in), "B": (out, rank) times the adapter's scale}."""
    config, path = read_json(files["lora_config"], f"weights {files['lora_config']}"), files["lora_weights"]
    odd = [key for key in (*_ADAPTER_PLAIN, "bias") if config.get(key) and config[key] != "none"]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if odd or not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise WeightsError(
            f"weights {files['lora_config']}: not a plain LoRA adapter (r {rank}, lora_alpha {alpha}, {odd})"
        )
    adapters: list[dict[str, dict[str, Tensor]]] = [{} for _ in range(branches)]
    for key, tensor in read_state(path).items():
        match = _ADAPTER_KEY.fullmatch(key)
        if match is None or int(match[1]) >= branches:
            raise WeightsError(f"weights {path}: {key} does not adapt a layer of this DreamSim model")
        scaled = tensor.float() * (float(alpha) / rank if match[3] == "B" else 1)
        adapters[int(match[1])].setdefault(f"vit.{match[2]}.weight", {})[match[3]] = scaled
    return adapters


def _merge(adapters: Mapping[str, Mapping[str, Tensor]], state: State, path: Path) -> None:
    """Add B @ A to each adapted weight, in place: what peft's merge does with a plain LoRA adapter."""
    for name, pair in adapters.items():
        weight = state.get(name)
        if weight is None:
            raise WeightsError(f"weights {path}: {name} is adapted, but is not a layer of this DreamSim model")
        if (
            pair.keys() != {"A", "B"}
            or pair["A"].ndim != 2
            or (pair["B"].shape[0], pair["A"].shape[1]) != tuple(weight.shape)
        ):
            raise WeightsError(f"weights {path}: the adapter of {name} is incomplete or has another shape")
        state[name] = weight.float() + pair["B"] @ pair["A"]


def _merge_layer_scale(state: State) -> State:
    """Multiply DINOv2's scales of each half block's output into the layer before: the package's ViT has none."""
    merged = dict(state)
    for name, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
        for key in [key for key in merged if key.endswith(f".{name}.gamma")]:
            gamma, into = merged.pop(key), key.replace(f"{name}.gamma", layer)
            if f"{into}.weight" in merged and merged[f"{into}.weight"].shape[0] == gamma.shape[0]:
                merged[f"{into}.weight"] = merged[f"{into}.weight"].float() * gamma.float()[:, None]
                merged[f"{into}.bias"] = merged[f"{into}.bias"].float() * gamma.float()
    return merged
