"""Models that timm builds: DINO, DINOv2, Swin, ResNet, EfficientNet-lite, any `timm:NAME`, BiomedCLIP's image tower.

A checkpoint may be in timm's layout or in the one its authors published, which timm's own filter for the architecture
translates (it also resamples a position embedding). Layouts that timm does not know are translated here: RadImageNet's
ResNet, and files with other tensor names in timm's order. The result must fill every tensor.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medret.errors import WeightsError
from medret.models.checkpoint import State, build, fill, mismatch, read_json, read_state
from medret.models.spec import ModelSpec
from medret.models.weights import Weights

# Prefixes that training code leaves before a backbone's names; OpenCLIP puts "visual.trunk." before a timm tower's.
_PREFIXES = ("module.", "backbone.", "module.backbone.", "encoder.", "model.", "visual.trunk.", "_orig_mod.")
# RadImageNet's ResNet50.pt holds torchvision's resnet50 as a sequence of its children.
_RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
TIMM_POOLING = {"default": "", "cls": "token", "mean": "avg"}  # our word -> timm's
# Classifiers and tensors of training, which an embedding does not use.
_UNUSED = re.compile(
    r"(head|fc|classifier|head_dist|attn_pool)\.|head\.fc\.|mask_token$|.*(relative_position_index|attn_mask)$"
)


def build_timm(spec: ModelSpec) -> nn.Module:
    """Build the architecture without its classifier, randomly initialised."""
    import timm

    options: dict[str, Any] = dict(spec.options)
    model: Any = timm.create_model(spec.architecture, pretrained=False, num_classes=0, **options)
    if pooling := TIMM_POOLING.get(spec.contract.pooling):
        model.reset_classifier(0, pooling)  # built with it, a transformer would have its last norm elsewhere
    module: nn.Module = model
    return module


def load_timm(spec: ModelSpec, weights: Weights) -> nn.Module:
    """Build the module and load its weights. Raises WeightsError."""
    model = build(weights, lambda: build_timm(spec))
    if not weights.random:
        path = weights.files["weights"]
        state = read_state(path)
        if spec.by_order and state.keys().isdisjoint(model.state_dict()):
            fill(model, _by_order(state, model, path, spec.name), path, spec.name)
        else:
            fill(model, _translate(state, model), path, f"{spec.name} ({spec.architecture})")
    return WithLayers(model, spec.layers) if spec.layers else model


def _translate(state: State, model: nn.Module) -> State:
    """The first reading of `state` that fits `model`; if none fits, the one with most of its names."""
    readings = list(_readings(state, model))
    for reading in readings:
        if mismatch(model, reading) is None:
            return reading
    expected = model.state_dict().keys()
    return max(readings, key=lambda reading: len(expected & reading.keys()))


def _readings(state: State, model: nn.Module) -> Iterator[State]:
    expected = model.state_dict().keys()
    for candidate in _unwrapped(state):
        # the model may have a tensor of such a name: drop only names that it lacks
        yield {key: value for key, value in candidate.items() if key in expected or not _UNUSED.match(key)}
        filtered = _filtered(candidate, model)
        if filtered is not None:
            yield {key: value for key, value in filtered.items() if key in expected or not _UNUSED.match(key)}


def _unwrapped(state: State) -> Iterator[State]:
    yield state
    for prefix in _PREFIXES:
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inner:
            yield inner
            heads = {key.partition(".")[0] for key in inner}
            if heads <= _RESNET_CHILDREN.keys():
                yield {_RESNET_CHILDREN[key.partition(".")[0]] + key[key.index(".") :]: inner[key] for key in inner}


def _filtered(state: State, model: nn.Module) -> State | None:
    """The state translated by timm's own filter, which the architecture's module holds by convention; None without."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return None
    try:
        result = translate(dict(state), model)
    except (KeyError, AttributeError, TypeError, ValueError, IndexError, RuntimeError, AssertionError):
        return None  # an unknown layout: the message about the untranslated reading says what was found
    return dict(result) if isinstance(result, Mapping) else None


def _by_order(state: State, model: nn.Module, path: Path, what: str) -> State:
    """Rename the tensors by their order. Drops the file's classifier (a weight and a bias), which comes last."""
    expected = model.state_dict()
    tensors: list[Tensor] = list(state.values())
    if len(tensors) != len(expected) + 2:
        raise WeightsError(
            f"weights {path}: not a checkpoint of {what}: {len(tensors)} tensors, "
            f"expected {len(expected) + 2} in timm's order"
        )
    return dict(zip(expected, tensors, strict=False))


class _Maps(threading.local):
    """The feature maps of the pass that this thread makes: several threads may use one model."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __deepcopy__(self, _memo: object) -> _Maps:
        return _Maps()


class WithLayers(nn.Module):
    """A model whose output is followed by the spatial means of inner feature maps, in one vector.

    The last layer of a network trained to name objects describes a picture in the words of its training data, an inner
    layer what it looks like. For slices of unfamiliar scanners the second generalises better, and both together best
    (docs/retrieval.md has the measurements).

    layers: names of submodules that give (n, channels, height, width). Each part is scaled to the length of the model's
    output, so that all count equally in a cosine; a zero part stays zero.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._seen = _Maps()
        for layer in layers:
            model.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._seen.maps.append(output)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, side, side) -> (n, dim of the output + channels of each layer)."""
        self._seen.maps.clear()
        parts = [self.model(images), *(features.mean((2, 3), dtype=torch.float32) for features in self._seen.maps)]
        self._seen.maps.clear()
        output = parts[0].float()
        length = output.norm(dim=1, keepdim=True)
        return torch.cat([output, *(nn.functional.normalize(part, dim=1) * length for part in parts[1:])], dim=1)


# What OpenCLIP's configuration says of a model like BiomedCLIP, besides what its spec says.
_TEXT_IS = {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}


class ImageTower(nn.Module):
    """A timm network and a linear projection without a bias, named as OpenCLIP names them."""

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


def load_open_clip(spec: ModelSpec, weights: Weights) -> nn.Module:
    """The image tower. Raises WeightsError."""
    model = build(weights, lambda: ImageTower(spec.architecture, spec.dim))
    if not weights.random:
        check_config(spec, weights)
        path = weights.files["weights"]
        fill(model, part_of(read_state(path), "visual."), path, f"the image tower of {spec.name}")
    return model


def part_of(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names begin so, without that beginning."""
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
