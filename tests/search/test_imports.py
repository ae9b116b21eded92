from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_searching_by_vector_or_volume_imports_neither_ray_nor_torch(made_store: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SEARCH, made_store.uri, made_store.ids[3], str(tmp_path / "vector.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
