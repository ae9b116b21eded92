"""The device and precision a model runs in, its batch size, and how its process holds memory.

Only CUDA questions import torch.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from medret.errors import UsageError
from medret.extras import needs_extra
from medret.recipe import Precision

Device = Literal["auto", "cpu", "cuda"]

# x86 instruction sets with bf16 multiply-accumulate; elsewhere bf16 is emulated and slower than fp32.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_CPU_FACTS = Path("/proc/cpuinfo")


def resolve_device(wanted: Device) -> str:
    """`cpu` or `cuda`. Raises UsageError for `cuda` where no GPU can be used: never a silent run on the CPU."""
    if wanted == "cpu":
        return "cpu"
    if wanted not in ("auto", "cuda"):
        raise UsageError(f"device '{wanted}' is unknown: expected auto, cpu or cuda")
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if wanted == "auto":
        return "cpu"
    raise UsageError(f"device cuda was asked for, but {problem}: choose --device cpu or auto, or run where a GPU is")


def resolve_precision(wanted: Literal["auto"] | Precision, device: str) -> Precision:
    """`auto` is bf16 where `device` (of this machine) computes it in hardware, fp32 elsewhere."""
    if wanted == "fp32" or wanted == "bf16":
        return wanted
    if wanted != "auto":
        raise UsageError(f"precision '{wanted}' is unknown: expected auto, fp32 or bf16")
    return "bf16" if (_cuda_has_bf16() if device.startswith("cuda") else _cpu_has_bf16()) else "fp32"


def default_batch_size(device: str) -> int:
    """Slices a forward pass: what a processor's caches hold, what fills a GPU.

    Measured on two cores for every family: eight is the best or within a few percent of it.
    """
    return 128 if device.startswith("cuda") else 8


def _cuda_problem() -> str | None:
    """Why CUDA cannot be used here, or None. A GPU that is listed but too old for this torch counts as unusable."""
    with needs_extra():
        import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU on this machine" if torch.version.cuda else "this torch is built without CUDA"
    try:
        torch.ones(1, device="cuda").add_(1)
    except RuntimeError as error:
        return f"the GPU does not work with this torch ({str(error).splitlines()[0]})"
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


# Of mallopt(3), and what each is set to. Feature maps of a batch are smaller than 32 MiB, the most that glibc takes for
# the third. A thread other than the main one, as Ray Data runs its actors', takes memory in heaps of 64 MiB; the second
# keeps it from giving an empty heap back.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT = {_TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}


def tune_malloc() -> bool:
    """Let this process's malloc keep what is freed, up to a GiB, for the next pass; False where it is not glibc's.

    By itself it gives large blocks back to the kernel, which clears and hands out their pages anew in every pass: up to
    a quarter of an embedding actor's time. For processes that do nothing but run a model.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return all(bool(mallopt(name, value)) for name, value in _KEPT.items())


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import large libraries without looking for garbage, which there is hardly any of: a quarter of torch's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
