"""Words to vectors: the text towers of models whose images share a space with words.

SigLIP and CLIP are transformers' own classes; BiomedCLIP's text tower is transformers' BERT with the projection that
OpenCLIP puts after it. Tokenizers are transformers' own, read from the files beside the weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medret.errors import MissingPackageError, NotFoundError, UsageError, WeightsError, first_line, needs_extra
from medret.models.checkpoint import build, fill, read_state
from medret.models.hub import FileSet, fetch, in_cache, open_files
from medret.models.spec import HubFile, ModelSpec, without_words
from medret.models.weights import Weights, is_random

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "spiece.model", "config.json",
)  # fmt: skip
VOCABULARIES = frozenset({"tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"})  # a tokenizer has one
_VALUES_PER_HEAD = 64  # of BERT, at every size
_OPEN_CLIP_TOKENS = 256  # context_length of BiomedCLIP
_BATCH = 16  # texts per forward pass
# What texts about volumes have in common is the mean of these, docs/decisions/0030-words-have-a-centre-of-their-own.md.
REFERENCE_TEXTS = tuple(
    f"{modality} of the {region}"
    for modality in ("CT scan", "MRI scan")
    for region in ("head", "neck", "chest", "abdomen", "pelvis", "spine", "leg", "whole body")
)


class TextEncoder:
    """The text tower of a model and its tokenizer, in float32 on one device."""

    def __init__(self, spec: ModelSpec, weights: Weights, weights_uri: str | None, *, device: str = "cpu") -> None:
        """Raises UsageError for a model without a text tower, WeightsError where its files are missing or damaged.

        weights_uri: where the weights came from, if the user named it; the tokenizer's files lie beside them.
        """
        if not spec.words:
            raise UsageError(without_words(spec.name))
        self.spec = spec
        self._device = torch.device(device)
        with needs_extra():
            self._tokenizer = load_tokenizer(spec, weights_uri)
            tower, self._most = self._load(weights)
        self._centre: NDArray[np.float32] | None = None
        self._tower = tower.eval().requires_grad_(False).to(self._device)

    def _load(self, weights: Weights) -> tuple[nn.Module, int]:
        """The tower, and the most tokens that it reads."""
        if self.spec.words == "open_clip":
            tower = load_text_tower(self.spec, weights)
            return tower, min(_OPEN_CLIP_TOKENS, tower.positions)
        from medret.models.hf_models import load_towers

        towers: Any = load_towers(self.spec, weights)
        towers.vision_model = nn.Identity()  # not needed for words
        return towers, int(towers.config.text_config.max_position_embeddings)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """n texts -> (n, dim), not normalised. Raises UsageError for a text that is longer than the model reads."""
        lengths = [len(self._tokenizer(text)["input_ids"]) for text in texts]
        for text, length in zip(texts, lengths, strict=True):
            if length > self._most:
                most = f"{self.spec.name} reads at most {self._most}"
                raise UsageError(f"text '{text[:40]}...' has {length} tokens, {most}: shorten it")
        parts = [self._forward(list(texts[at : at + _BATCH])) for at in range(0, len(texts), _BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, self.spec.dim), np.float32)

    def directions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """n texts -> (n, dim) unit vectors: their directions from the centre of texts about volumes."""
        if self._centre is None:
            self._centre = unit(self.embed(REFERENCE_TEXTS)).mean(axis=0)
        return unit(unit(self.embed(texts)) - self._centre)

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> NDArray[np.float32]:
        # SigLIP was trained on texts that are padded to their full length
        padding = "max_length" if self.spec.words == "siglip" else True
        tokens = self._tokenizer(texts, padding=padding, max_length=self._most, truncation=True, return_tensors="pt")
        tokens = tokens.to(self._device)
        vectors: Tensor
        if self.spec.words == "open_clip":
            ids = tokens["input_ids"]
            vectors = self._tower(ids, torch.ne(ids, self._tokenizer.pad_token_id).long())
        else:
            tower: Any = self._tower
            given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
            vectors = tower.get_text_features(**given).pooler_output
        if vectors.shape != (len(texts), self.spec.dim):
            raise WeightsError(
                f"{self.spec.name}: its text tower gives {tuple(vectors.shape)}, not {self.spec.dim} wide"
            )
        found: NDArray[np.float32] = vectors.float().cpu().numpy()
        return found


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, dim) vectors, scaled to unit length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def load_tokenizer(spec: ModelSpec, weights_uri: str | None) -> Any:
    """The tokenizer in the files beside the weights, by transformers' own choice of class; runs no code from there."""
    import transformers

    files = _tokenizer_files(spec, weights_uri)
    names = [name for name in TOKENIZER_FILES if name in files.entries]
    if not VOCABULARIES & set(names):
        raise WeightsError(
            f"{spec.name}: no tokenizer in {files.label}: words need the files {', '.join(TOKENIZER_FILES[:3])} of "
            f"{spec.source}, in the folder of --weights {spec.name}=FOLDER"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            entry = files.entries[name]
            (Path(folder) / name).write_bytes(entry.read_bytes() if isinstance(entry, Path) else entry())
        try:
            auto: Any = transformers.AutoTokenizer
            return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except ImportError as error:
            raise MissingPackageError(
                f"the tokenizer of {spec.name} needs a package that is not installed: for SigLIP, "
                f"pip install sentencepiece protobuf ({first_line(error)})"
            ) from error
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise WeightsError(f"{spec.name}: its tokenizer cannot be read: {first_line(error)}") from error


def _tokenizer_files(spec: ModelSpec, weights_uri: str | None) -> FileSet:
    if weights_uri is not None and not is_random(weights_uri):
        return open_files(weights_uri)
    files = FileSet(spec.source)
    hub = next((origin for origin in spec.origins if isinstance(origin, HubFile)), None)
    if hub is None:
        for origin in spec.origins:
            files |= fetch(origin)[0]
        return files
    out_of_reach: WeightsError | None = None
    for name in TOKENIZER_FILES:
        origin = HubFile(hub.repo, (name,), hub.revision)
        try:
            files |= in_cache(origin) if out_of_reach else fetch(origin)[0]
        except NotFoundError:
            continue
        except WeightsError as error:  # perhaps the repository has no such file: its others may be in the cache
            out_of_reach = error
    alone, together = VOCABULARIES - {"vocab.json"}, {"vocab.json", "merges.txt"}
    is_whole = bool(alone & files.entries.keys()) or together <= files.entries.keys()
    if out_of_reach and not (is_whole and "tokenizer_config.json" in files.entries):
        raise out_of_reach
    return files


class TextTower(nn.Module):
    """BERT; its class token through two linear layers without biases, with a GELU between them."""

    def __init__(self, width: int, layers: int, inner: int, vocabulary: int, positions: int, dim: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, intermediate_size=inner,
            num_attention_heads=max(1, width // _VALUES_PER_HEAD), max_position_embeddings=positions,
        )  # fmt: skip
        self.positions = positions
        self.transformer = BertModel(config, add_pooling_layer=False)
        between = (width + dim) // 2
        self.proj = nn.Sequential(nn.Linear(width, between, bias=False), nn.GELU(), nn.Linear(between, dim, bias=False))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, tokens) -> (n, dim)."""
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projected: Tensor = self.proj(tokens[:, 0])
        return projected


def load_text_tower(spec: ModelSpec, weights: Weights) -> TextTower:
    """The text tower in OpenCLIP's layout; of random weights, BERT base. Raises WeightsError."""
    if weights.random:
        return build(weights, lambda: TextTower(768, 12, 3072, 30522, 512, spec.dim))
    from medret.models.timm_models import part_of

    path = weights.files["weights"]
    state = part_of(read_state(path), "text.")
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
