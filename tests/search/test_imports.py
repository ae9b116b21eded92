from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_SEARCH = """
import sys
import numpy as np
import medret
snapshot = medret.open_snapshot(sys.argv[1])
hits = snapshot.search(sys.argv[2], 3)
assert hits[0].volume_id == sys.argv[2], hits
np.save(sys.argv[3], np.ones(32))
assert snapshot.search(sys.argv[3], 3)
assert snapshot.search(np.ones(32), 3, index="lsh") and snapshot.search(sys.argv[2], 3, mode="slice")
heavy = {"ray", "torch", "torchvision", "timm", "transformers", "pandas", "nibabel", "fsspec", "pyarrow.compute"}
heavy = sorted(heavy & set(sys.modules))
print(heavy)
"""


_COMMAND = """
import sys
from medret.cli import main
try:
    code = main(sys.argv[2:])
except SystemExit as ended:
    code = ended.code
assert not code
print(sorted(set(sys.argv[1].split(",")) & set(sys.modules)), file=sys.stderr)
"""
_OF_SEARCHES = "ray,torch,torchvision,timm,transformers,pandas,nibabel,fsspec,pyarrow.compute"


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["index", "--help"]])
def test_help_imports_no_library_of_a_search(words: list[str]) -> None:
    command = [sys.executable, "-c", _COMMAND, f"{_OF_SEARCHES},faiss,pyarrow", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_the_command_imports_what_python_does(made_store: Any) -> None:
    words = ["search", made_store.uri, made_store.ids[3], "--json"]
    command = [sys.executable, "-c", _COMMAND, _OF_SEARCHES, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_searching_by_vector_or_volume_imports_neither_ray_nor_torch(made_store: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SEARCH, made_store.uri, made_store.ids[3], str(tmp_path / "vector.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
