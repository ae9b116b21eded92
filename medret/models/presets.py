"""Models trained on medical images, and DINOv3, by name: what each is fed, its licence and its terms.

Values are those of the processor's file that its publisher put beside the weights; the file is among the parts of the
weights, and weights whose file says otherwise are refused. Sources are named in docs/models.md.
"""

from __future__ import annotations

import json
from typing import Any

from medret.models.spec import HALF, IMAGENET_MEAN, IMAGENET_STD, HubFile, ModelSpec, Triple, WeightPart, Words
from medret.recipe import USUAL, Contract

_HF_PARTS = (
    WeightPart("config", ("config.json",)),
    WeightPart("processor", ("preprocessor_config.json",)),
    WeightPart("weights", ("model.safetensors", "pytorch_model.bin")),
)
_OPEN_CLIP_PARTS = (
    WeightPart("config", ("open_clip_config.json",)),
    WeightPart("weights", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
)
_CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = Contract(resample="bicubic")
_CURIA = Contract(channels=1, values="real", normalise="image", resample="bicubic")
# Bone and lung, soft tissue, brain: level -100 and width 2250, 40 and 350, 40 and 80 HU (arXiv 2507.05201).
_MEDSIGLIP = Contract(windows_hu=((-1225, 1025), (-135, 215), (0, 80)), resample="bicubic")
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

_RESEARCH_ONLY = "for research only, not for clinical use"


def _hf(
    name: str,
    repo: str,
    config: dict[str, Any],
    dim: int,
    image_size: int,
    mean: Triple,
    std: Triple,
    licence: str,
    trained_on: str,
    gmacs: float,
    *,
    contract: Contract = USUAL,
    words: Words = "",
    terms: str = "",
) -> ModelSpec:
    """A model of transformers. config: of its architecture, for random weights; real ones bring their own."""
    return ModelSpec(
        name, "hf", str(config["model_type"]), dim, image_size, mean, std, licence, trained_on,
        f"config.json, preprocessor_config.json and model.safetensors of {repo} (Hugging Face hub)",
        origins=tuple(HubFile(repo, part.names) for part in _HF_PARTS), parts=_HF_PARTS,
        config_json=json.dumps(config, sort_keys=True), contract=contract, words=words, terms=terms, gmacs=gmacs,
    )  # fmt: skip


def _dinov3(size: str, width: int, layers: int, heads: int, gmacs: float) -> ModelSpec:
    config = {
        "model_type": "dinov3_vit", "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_register_tokens": 4, "image_size": 224, "patch_size": 16,
    }  # fmt: skip
    return _hf(
        f"dinov3_{size}16", f"facebook/dinov3-vit{size}16-pretrain-lvd1689m", config, width, 224, IMAGENET_MEAN,
        IMAGENET_STD, "DINOv3 License", "LVD-1689M, self-supervised (DINOv3)", gmacs,
        terms="its publisher gives the weights to those who accept the DINOv3 License",
    )  # fmt: skip


def _curia(name: str, repo: str) -> ModelSpec:
    config = {
        "model_type": "dinov2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 1, "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    return _hf(
        name, repo, config, 768, 512, _ZERO, _ONE, "Research-only RAIL-M",
        "CT and MRI of one hospital, self-supervised (DINOv2)", 106.1, contract=_CURIA,
        terms=f"{_RESEARCH_ONLY}: its publisher gives the weights to those who accept that",
    )  # fmt: skip


_SIGLIP_TOWER = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}

PRESETS: tuple[ModelSpec, ...] = (
    _dinov3("s", 384, 12, 6, 4.9),
    _dinov3("b", 768, 12, 12, 18.0),
    _dinov3("l", 1024, 24, 16, 63.3),
    _hf(
        "rad_dino", "microsoft/rad-dino",
        {"model_type": "dinov2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "image_size": 518, "patch_size": 14},
        768, 518, (0.5307, 0.5307, 0.5307), (0.2583, 0.2583, 0.2583), "MIT",
        "chest radiographs, self-supervised (DINOv2)", 152.0, contract=_BICUBIC,
        terms=f"{_RESEARCH_ONLY}, as its publisher's page says",
    ),
    ModelSpec(
        "radiodino_s16", "timm", "vit_small_patch16_224", 384, 224, IMAGENET_MEAN, IMAGENET_STD, "CC-BY-4.0",
        "RadImageNet, self-supervised (DINO)", "model.safetensors of Snarcy/RadioDino-s16 (Hugging Face hub)",
        origins=(HubFile("Snarcy/RadioDino-s16", ("model.safetensors", "pytorch_model.bin")),),
        contract=_BICUBIC, gmacs=4.6,
    ),
    _curia("curia", "raidium/curia"),
    _curia("curia2", "raidium/curia-2"),
    _hf(
        "medsiglip", "google/medsiglip-448",
        {"model_type": "siglip", "vision_config": {**_SIGLIP_TOWER, "image_size": 448, "patch_size": 14},
         "text_config": {**_SIGLIP_TOWER, "max_position_embeddings": 64, "vocab_size": 32000}},
        1152, 448, HALF, HALF, "Health AI Developer Foundations terms of use",
        "medical images with text, and WebLI (SigLIP)", 497.0, contract=_MEDSIGLIP, words="siglip",
        terms="its publisher gives the weights to those who accept the Health AI Developer Foundations terms of use",
    ),
    ModelSpec(
        "biomedclip", "open_clip", "vit_base_patch16_224", 512, 224, _CLIP_MEAN, _CLIP_STD, "MIT",
        "PMC-15M, figures and captions of PubMed Central (CLIP)",
        "open_clip_config.json and open_clip_pytorch_model.bin of "
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 (Hugging Face hub)",
        origins=tuple(
            HubFile("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", part.names)
            for part in _OPEN_CLIP_PARTS
        ),
        parts=_OPEN_CLIP_PARTS, contract=_BICUBIC, words="open_clip", gmacs=17.6,
        terms=f"{_RESEARCH_ONLY}, as its publisher's page says",
    ),
)  # fmt: skip
