"""The device, precision and batch size a model runs with, and how its process holds memory.

Only CUDA questions import torch.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from medret.errors import UsageError, first_line, needs_extra
from medret.recipe import Precision

Device = Literal["auto", "cpu", "cuda"]

# x86 instruction sets with bf16 multiply-accumulate; elsewhere bf16 is emulated and slower than fp32.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_CPU_FACTS = Path("/proc/cpuinfo")


def resolve_device(requested: Device) -> str:
    """`cpu` or `cuda`. Raises UsageError for `cuda` without a usable GPU, instead of running on the CPU silently."""
    if requested == "cpu":
        return "cpu"
    if requested not in ("auto", "cuda"):
        raise UsageError(f"device '{requested}' is unknown: expected auto, cpu or cuda")
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if requested == "auto":
        return "cpu"
    raise UsageError(
        f"device cuda was requested, but {problem}: choose --device cpu or auto, or use a machine with a GPU"
    )


def resolve_precision(requested: Literal["auto"] | Precision, device: str) -> Precision:
    """Resolve `auto` to bf16 if `device` (of this machine) computes it in hardware, else to fp32."""
    if requested == "fp32" or requested == "bf16":
        return requested
    if requested != "auto":
        raise UsageError(f"precision '{requested}' is unknown: expected auto, fp32 or bf16")
    return "bf16" if (_cuda_has_bf16() if device.startswith("cuda") else _cpu_has_bf16()) else "fp32"


def default_batch_size(device: str) -> int:
    """Slices per forward pass: as many as a CPU's caches hold, or as fill a GPU.

    Measured on two CPU cores for every family of models: eight is the best, or within a few percent of it.
    """
    return 128 if device.startswith("cuda") else 8


def _cuda_problem() -> str | None:
    """Why CUDA cannot be used here, or None. A GPU too old for this torch is listed, but counts as unusable."""
    with needs_extra():
        import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU on this machine" if torch.version.cuda else "this torch is built without CUDA"
    try:
        torch.ones(1, device="cuda").add_(1)
    except RuntimeError as error:
        return f"the GPU does not work with this torch ({first_line(error)})"
    return None


def _cuda_has_bf16() -> bool:
    import torch

    return torch.cuda.get_device_capability()[0] >= 8  # Ampere; older ones emulate it


def _cpu_has_bf16(facts: Path = _CPU_FACTS) -> bool:
    try:
        text = facts.read_text()
    except OSError:  # not Linux
        return False
    return any(line.startswith("flags") and not _BF16_FLAGS.isdisjoint(line.split()) for line in text.splitlines())


# Parameters of mallopt(3) and their values. Feature maps of a batch are smaller than 32 MiB, glibc's maximum for the
# mmap threshold. Ray Data runs actors in threads other than the main one, whose memory comes in heaps of 64 MiB; the
# top pad keeps glibc from returning an empty heap.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT = {_TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}


def tune_malloc() -> bool:
    """Let glibc's malloc keep up to a GiB of freed memory for the next pass; False if this is not glibc.

    By default it returns large blocks to the kernel, which clears their pages again in every pass: up to a quarter of
    an embedding actor's time. Meant for processes that only run a model.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return all(bool(mallopt(name, value)) for name, value in _KEPT.items())


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection during large imports: it finds hardly any, and takes a quarter of torch's import."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
