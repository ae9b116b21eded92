"""BiomedCLIP: a timm image tower and a BERT text tower, from one file in OpenCLIP's layout.

OpenCLIP itself is not needed: each tower is the library's own module, with the projection that OpenCLIP puts after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medret.errors import WeightsError
from medret.models.checkpoint import State, build, fill, read_json, read_state
from medret.models.spec import ModelSpec
from medret.models.weights import Weights

_VISUAL, _TEXT = "visual.", "text."
_VALUES_PER_HEAD = 64  # of BERT, at every size
# What OpenCLIP's configuration says of such a model.
_TEXT_IS = {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}


class ImageTower(nn.Module):
    """A timm network and a linear projection without a bias."""

    def __init__(self, architecture: str, dim: int) -> None:
        super().__init__()
        import timm

        trunk: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
        self.trunk = trunk
        self.head = nn.ModuleDict({"proj": nn.Linear(trunk.num_features, dim, bias=False)})

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) -> (n, dim)."""
        projected: Tensor = self.head["proj"](self.trunk(images))
        return projected


class TextTower(nn.Module):
    """BERT; its class token through two linear layers without biases, with a GELU between them."""

    def __init__(self, width: int, layers: int, inner: int, vocabulary: int, positions: int, dim: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, intermediate_size=inner,
            num_attention_heads=max(1, width // _VALUES_PER_HEAD), max_position_embeddings=positions,
        )  # fmt: skip
        self.transformer = BertModel(config, add_pooling_layer=False)
        between = (width + dim) // 2
        self.proj = nn.Sequential(nn.Linear(width, between, bias=False), nn.GELU(), nn.Linear(between, dim, bias=False))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, tokens) -> (n, dim)."""
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projected: Tensor = self.proj(tokens[:, 0])
        return projected


def load_open_clip(spec: ModelSpec, weights: Weights) -> nn.Module:
    """The image tower. Raises WeightsError."""
    model = build(weights, lambda: ImageTower(spec.architecture, spec.dim))
    if not weights.random:
        check_config(spec, weights)
        path = weights.files["weights"]
        fill(model, _part(read_state(path), _VISUAL), path, f"the image tower of {spec.name}")
    return model


def load_text_tower(spec: ModelSpec, weights: Weights) -> nn.Module:
    """The text tower; of random weights, BERT base. Raises WeightsError."""
    if weights.random:
        return build(weights, lambda: TextTower(768, 12, 3072, 30522, 512, spec.dim))
    path = weights.files["weights"]
    state = _part(read_state(path), _TEXT)
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}  # of older files
    try:
        words, positions = (
            state[f"transformer.embeddings.{name}_embeddings.weight"].shape for name in ("word", "position")
        )
        inner = state["transformer.encoder.layer.0.intermediate.dense.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(f"weights {path}: no text tower of {spec.name}: {error} is missing") from error
    numbers = [int(key.split(".")[3]) for key in state if key.startswith("transformer.encoder.layer.")]
    model = TextTower(words[1], 1 + max(numbers), inner, words[0], positions[0], spec.dim)
    fill(model, state, path, f"the text tower of {spec.name}")
    return model


def _part(state: Mapping[str, Tensor], prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def check_config(spec: ModelSpec, weights: Weights) -> None:
    """Raise WeightsError unless open_clip_config.json describes the model that is built here."""
    path = weights.files["config"]
    content = read_json(path, f"weights {path}")
    model, preprocess = content.get("model_cfg", {}), content.get("preprocess_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    expected = {
        "embed_dim": (model.get("embed_dim"), spec.dim),
        "timm_model_name": (vision.get("timm_model_name"), spec.architecture),
        "timm_proj": (vision.get("timm_proj"), "linear"),
        "image_size": (vision.get("image_size", spec.image_size), spec.image_size),
        **{key: (text.get(key, text.get(key.removeprefix("hf_"))), value) for key, value in _TEXT_IS.items()},
        "mean": (tuple(preprocess.get("mean", spec.mean)), spec.mean),
        "std": (tuple(preprocess.get("std", spec.std)), spec.std),
    }
    wrong = [f"{key} {found!r} instead of {value!r}" for key, (found, value) in expected.items() if found != value]
    if wrong:
        raise WeightsError(f"weights {path}: not a configuration of {spec.name}: {', '.join(wrong)}")
