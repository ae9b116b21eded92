from __future__ import annotations

import ctypes
import gc
import platform
import subprocess
import sys

import pytest

from medret.models.devices import gc_paused, tune_malloc

# Fills large blocks and frees them, pass after pass, as a model does its feature maps; prints how many pages the kernel
# handed out from the second pass on, and how many the blocks have.
PROGRAM = """
import mmap, resource, sys, threading
import numpy as np
from medret.models import tune_malloc

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    return [np.ones(20 << 17) for _ in range(4)]

def run():
    work()
    before = faults()
    for _ in range(5):
        work()
    print(faults() - before, 5 * 4 * (20 << 20) // mmap.PAGESIZE)

if sys.argv[1] == "kept":
    assert tune_malloc()
if sys.argv[2] == "main":
    run()
else:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
"""


def faults(how: str, thread: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how, thread], capture_output=True, text=True, check=True)
    found, pages = map(int, done.stdout.split())
    return found, pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
@pytest.mark.parametrize("thread", ["main", "another"])
def test_freed_memory_is_used_again(thread: str) -> None:
    handed, pages = faults("as it is", thread)
    kept, _ = faults("kept", thread)
    assert kept < pages / 50 < handed


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert tune_malloc() is False


def test_garbage_is_collected_again_afterwards() -> None:
    with gc_paused():
        assert not gc.isenabled()
        with gc_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
