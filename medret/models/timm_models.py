"""Models that timm builds: DINO, DINOv2, Swin, ResNet, EfficientNet-lite and any `timm:NAME`.

A checkpoint may be in timm's layout or in the one its authors published; timm's own filter of the architecture
translates (and resamples a position embedding). What timm does not know is here: RadImageNet's ResNet, and files
that name their tensors otherwise but keep timm's order. The result must fill every tensor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medret.errors import WeightsError
from medret.models.checkpoint import State, build, fill, mismatch, read_state
from medret.models.spec import ModelSpec
from medret.models.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

# Wrappers that training code leaves around a backbone; "visual.trunk." is OpenCLIP's around a timm tower.
_PREFIXES = ("module.", "backbone.", "module.backbone.", "encoder.", "model.", "visual.trunk.", "_orig_mod.")
# RadImageNet's ResNet50.pt holds torchvision's resnet50 as a sequence of its children.
_RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Classifiers and training-time tensors, which an embedding does not use.
_UNUSED = re.compile(r"(head|fc|classifier|head_dist)\.|head\.fc\.|mask_token$|.*(relative_position_index|attn_mask)$")


def build_timm(spec: ModelSpec) -> nn.Module:
    """The architecture without classifier, randomly initialised."""
    import timm

    options: dict[str, Any] = dict(spec.options)
    model: nn.Module = timm.create_model(spec.architecture, pretrained=False, num_classes=0, **options)
    return model


def load_timm(spec: ModelSpec, weights: Weights) -> nn.Module:
    """The module with its weights. Raises WeightsError."""
    model = build(weights, lambda: build_timm(spec))
    if weights.random:
        return model
    path = weights.files["weights"]
    state = read_state(path)
    if spec.by_order and state.keys().isdisjoint(model.state_dict()):
        fill(model, _by_order(state, model, path, spec.name), path, spec.name)
    else:
        fill(model, _translate(state, model), path, f"{spec.name} ({spec.architecture})")
    return model


def _translate(state: State, model: nn.Module) -> State:
    """The first reading of `state` that fits `model`; when none does, the one that comes closest."""
    readings = list(_readings(state, model))
    for reading in readings:
        if mismatch(model, reading) is None:
            return reading
    wanted = model.state_dict().keys()
    return max(readings, key=lambda reading: len(wanted & reading.keys()))


def _readings(state: State, model: nn.Module) -> Iterator[State]:
    wanted = model.state_dict().keys()
    for candidate in _unwrapped(state):
        # a model may own a tensor of such a name: only what it lacks is unused
        yield {key: value for key, value in candidate.items() if key in wanted or not _UNUSED.match(key)}
        filtered = _filtered(candidate, model)
        if filtered is not None:
            yield {key: value for key, value in filtered.items() if key in wanted or not _UNUSED.match(key)}


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
    """timm's translation of published layouts, kept by convention in the module that defines the architecture."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return None
    try:
        result = translate(dict(state), model)
    except (KeyError, AttributeError, TypeError, ValueError, IndexError, RuntimeError, AssertionError):
        return None  # a layout it does not know: the untranslated reading tells the user what was found
    return dict(result) if isinstance(result, Mapping) else None


def _by_order(state: State, model: nn.Module, path: Path, what: str) -> State:
    """Rename the tensors by position. The file's classifier (a weight and a bias) comes last and is dropped."""
    wanted = model.state_dict()
    tensors: list[Tensor] = list(state.values())
    if len(tensors) != len(wanted) + 2:
        raise WeightsError(
            f"weights {path}: not a checkpoint of {what}: {len(tensors)} tensors, "
            f"expected {len(wanted) + 2} in timm's order"
        )
    return dict(zip(wanted, tensors, strict=False))
