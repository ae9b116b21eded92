from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch

from medret.errors import UsageError
from medret.models import DEFAULT_MODEL, ModelSpec, model_names, model_spec
from medret.models.registry import PRESETS
from medret.models.spec import IMAGENET_MEAN, HubFile, PackageFile, UrlFile

ASKED = {
    "dinov1": 768, "dinov1_s16": 384, "dinov2": 768, "dinov2_s14": 384, "dinov2_l14": 1024,
    "dreamsim": 1792, "dreamsim_dino_vitb16": 768, "dreamsim_clip_vitb32": 512, "dreamsim_open_clip_vitb32": 512,
    "dreamsim_dinov2_vitb14": 768, "swin": 1024, "swin_t": 768, "swin_radimagenet": 1024, "resnet50": 2048,
    "resnet50_radimagenet": 2048, "efficientnet_lite0": 1472, "efficientnet_lite1": 1472, "efficientnet_lite2": 1488,
    "mobilenetv2_100": 1440,
}  # fmt: skip


def test_every_model_asked_for_is_there() -> None:
    of_presets = {spec.name: spec.dim for spec in PRESETS}  # tests/models/test_presets.py
    assert {name: model_spec(name).dim for name in model_names()} == ASKED | of_presets
    assert DEFAULT_MODEL in ASKED


@pytest.mark.parametrize("name", ASKED)
def test_a_spec_is_complete_plain_data(name: str) -> None:
    spec = model_spec(name)
    assert spec.name == name
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.licence
    assert spec.source
    assert spec.trained_on
    assert min(spec.std) > 0
    assert all(isinstance(origin, PackageFile | HubFile | UrlFile) for origin in spec.origins)
    assert len({part.role for part in spec.parts}) == len(spec.parts)


@pytest.mark.parametrize("name", [name for name in ASKED if not name.startswith("dreamsim")])
def test_width_and_cost_are_those_of_the_architecture(name: str) -> None:
    from medret.models.open_names import measure
    from medret.models.timm_models import WithLayers, build_timm

    spec = model_spec(name)
    dim, gmacs = measure(lambda: WithLayers(build_timm(spec), spec.layers), spec.image_size, name)
    assert dim == spec.dim
    assert gmacs == pytest.approx(spec.gmacs, rel=0.05)


def test_dreamsim_costs_as_much_as_the_networks_it_is_made_of() -> None:
    cost = {name: model_spec(name).gmacs for name in ASKED}
    assert cost["dreamsim"] == pytest.approx(3 * cost["dinov1"], rel=0.01)
    assert cost["dreamsim_dino_vitb16"] == cost["dinov1"]
    assert cost["dreamsim_dinov2_vitb14"] == cost["dinov2"]
    for name in ("dreamsim_clip_vitb32", "dreamsim_open_clip_vitb32"):  # a quarter of the patches
        assert cost[name] == pytest.approx(cost["dinov1"] / 4, rel=0.02)


@pytest.mark.parametrize("name", [name for name in ASKED if name.startswith("dreamsim")])
def test_the_width_is_what_the_dreamsim_package_states(name: str) -> None:
    from dreamsim.config import dreamsim_args
    from dreamsim.model import EMBED_DIMS

    spec = model_spec(name)
    entry = dreamsim_args["model_config"][spec.architecture]
    pairs = zip(entry["model_type"].split(","), entry["feat_type"].split(","), strict=True)
    assert sum(EMBED_DIMS[model_type][feature] for model_type, feature in pairs) == spec.dim
    assert (spec.mean, spec.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("name", [name for name in ASKED if not name.startswith("dreamsim")])
def test_preprocessing_is_what_timm_records(name: str) -> None:
    from timm.models import get_pretrained_cfg

    spec = model_spec(name)
    hub = [origin.repo for origin in spec.origins if isinstance(origin, HubFile)]
    if not hub:  # weights from elsewhere, with pre-processing of their own
        assert (spec.mean, spec.std) == ((0.5,) * 3, (0.5,) * 3)
        return
    record = get_pretrained_cfg(hub[0].removeprefix("timm/"))
    assert record is not None
    assert record.hf_hub_id == hub[0]
    assert (record.mean, record.std, record.interpolation) == (spec.mean, spec.std, spec.interpolation)
    if record.license:  # older releases of timm leave it out
        assert record.license.lower() == spec.licence.lower()


@pytest.mark.parametrize("name", ["dinov3", "DINOV1", "", "dinov22", "timm:", "timm:no_such_model", "timm:a/b"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        model_spec(name)
    assert ("efficientnet_lite0" in str(caught.value)) or name.startswith("timm:")


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UsageError, match="did you mean dinov2"):
        model_spec("dinov22")


def test_timm_names_bring_their_facts() -> None:
    spec = model_spec("timm:mobilenetv3_small_050.lamb_in1k")
    assert isinstance(spec, ModelSpec)
    assert (spec.dim, spec.image_size, spec.mean) == (1024, 224, IMAGENET_MEAN)
    assert spec.origins == (
        HubFile("timm/mobilenetv3_small_050.lamb_in1k", ("model.safetensors", "pytorch_model.bin")),
    )
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert model_spec("timm:vit_small_patch16_dinov3").image_size == 256


def test_timm_names_suggest_and_check_tags() -> None:
    with pytest.raises(UsageError, match=r"close ones: .*resnet50"):
        model_spec("timm:resnet5")
    with pytest.raises(UsageError, match=r"timm:resnet50\.no_such_tag"):
        model_spec("timm:resnet50.no_such_tag")


def test_importing_models_and_resolving_the_default_imports_no_torch() -> None:
    code = (
        "import sys, medret.models as m; spec = m.model_spec(m.DEFAULT_MODEL); m.resolve_weights(spec);"
        "m.resolve_weights(spec, 'random:3'); m.resolve_precision('auto', 'cpu'); m.resolve_device('cpu');"
        "print(sorted({'torch', 'timm', 'transformers', 'ray', 'dreamsim', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from medret.models.encoder import load_model
    from medret.models.weights import random_weights

    spec = model_spec("resnet50")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r'pip install "medret\[models\]"'):
        load_model(spec, random_weights(spec))
    assert torch.__version__  # the rest is there
