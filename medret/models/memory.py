"""How a process that runs a model on a processor holds its memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

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
