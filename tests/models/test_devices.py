from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medret.errors import UsageError
from medret.models import default_batch_size, resolve_device, resolve_precision
from medret.models.devices import _cpu_has_bf16

CPUINFO = "processor\t: 0\nflags\t\t: fpu avx2 avx512f {flag}\nbugs\t\t: none\n"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_cpu_is_cpu() -> None:
    assert resolve_device("cpu") == "cpu"


def test_auto_takes_what_there_is(no_gpu: None) -> None:
    assert resolve_device("auto") == "cpu"


def test_cuda_without_a_gpu_is_an_error(no_gpu: None) -> None:
    with pytest.raises(UsageError, match=r"device cuda was requested, but .*--device cpu or auto") as caught:
        resolve_device("cuda")
    assert caught.value.exit_code == 2


def test_a_gpu_that_does_not_compute_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", broken)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UsageError, match="no kernel image"):
        resolve_device("cuda")


def test_a_gpu_that_computes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda size, device: ones(size))
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_precision_on_a_gpu(capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_precision("auto", "cuda") == precision


@pytest.mark.parametrize(("flag", "has"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512_fp16", False)])
def test_precision_on_a_cpu_follows_its_instructions(flag: str, has: bool, tmp_path: Path) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(CPUINFO.format(flag=flag))
    assert _cpu_has_bf16(facts) is has
    assert _cpu_has_bf16(tmp_path / "absent") is False


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_stated_precision_stays(wanted: Any) -> None:
    assert resolve_precision(wanted, "cpu") == resolve_precision(wanted, "cuda") == wanted
    assert resolve_precision("auto", "cpu") in ("fp32", "bf16")


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        resolve_device("tpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="precision 'fp8' is unknown"):
        resolve_precision("fp8", "cpu")  # type: ignore[arg-type]


def test_batches_fit_the_device() -> None:
    assert default_batch_size("cpu") < default_batch_size("cuda") == default_batch_size("cuda:1")
