"""Small image-text models of random values in the layouts of CLIP, SigLIP and BiomedCLIP, with their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from medret.models.spec import ModelSpec, WeightPart

SIDE, DIM, VALUES_PER_HEAD = 32, 16, 64
WORDS = tuple(
    "ct mri scan of the head neck chest abdomen pelvis spine leg whole body axial liver with cysts brain lung".split()  # noqa: SIM905
)
TOWER: dict[str, Any] = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PROJECTED = 'pooling = "projection"'


def write_tokenizer(folder: Path, length: int) -> Any:
    """One token per word, between a first and a last token."""
    specials = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: number for number, word in enumerate((*specials, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


def write_two_towers(kind: str, folder: Path) -> Any:
    """A CLIP or SigLIP model of transformers, with its processor and tokenizer."""
    vision = {**TOWER, "image_size": SIDE, "patch_size": 16, "projection_dim": DIM}
    text = {
        **TOWER, "vocab_size": 4 + len(WORDS), "max_position_embeddings": 12, "projection_dim": DIM, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3, "projection_size": DIM,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any
    if kind == "clip":
        text.pop("projection_size")
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=DIM)
        model = transformers.CLIPModel(config)
    else:
        vision.pop("projection_dim")
        text.pop("projection_dim")
        model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    write_tokenizer(folder, 12)
    return model


def small_biomedclip() -> ModelSpec:
    """BiomedCLIP with a small image tower. tests/models/test_words.py announces it as another package would."""
    parts = (WeightPart("config", ("open_clip_config.json",)), WeightPart("weights", ("open_clip_pytorch_model.bin",)))
    return ModelSpec(
        "small_biomedclip", "open_clip", "test_vit", DIM, 160, (0.5,) * 3, (0.5,) * 3, "none", "random values",
        "a test", parts=parts, words="open_clip",
    )  # fmt: skip


def write_biomedclip(folder: Path) -> tuple[Any, Any]:
    """OpenCLIP's own towers in one file, as it publishes them."""
    torch.manual_seed(0)
    visual = open_clip.timm_model.TimmModel("test_vit", DIM, 160, pool="", proj="linear").eval()
    bert = transformers.BertConfig(
        vocab_size=4 + len(WORDS), hidden_size=VALUES_PER_HEAD, num_hidden_layers=2, num_attention_heads=1,
        intermediate_size=48, max_position_embeddings=12,
    )  # fmt: skip
    text = open_clip.hf_model.HFTextEncoder("", DIM, bert, "cls_last_hidden_state_pooler", "mlp").eval()
    for parameter in [*visual.parameters(), *text.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    state = {f"visual.{key}": value for key, value in visual.state_dict().items()}
    state |= {f"text.{key}": value for key, value in text.state_dict().items() if ".pooler." not in key}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    config = {
        "model_cfg": {
            "embed_dim": DIM,
            "vision_cfg": {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 160},
            "text_cfg": {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    write_tokenizer(folder, 12)
    return visual, text


def announce(folder: Path, name: str, target: str) -> None:
    """Write what an installed package leaves: its name, and the model that it brings."""
    info = folder / "towers_of_tests-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: towers-of-tests\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[medret.models]\n{name} = {target}\n")
