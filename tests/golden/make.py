"""Write the golden archive and store: `python -m tests.golden.make FOLDER`.

The golden store was written by medret 0.1 and stays as it is: later versions have to read it, and to write the same
files from the same archive. It is made again only when PIXELS_VERSION, VECTORS_VERSION or the format of stores changes.
"""

from __future__ import annotations

import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medret import open_snapshot
from medret.cli import main
from medret.demo.phantoms import KINDS, write_phantom

QUERIES = ("chest_ct/0.nii.gz", "leg_mri/1.nii.gz")
SHAPE = (16, 14, 10)
VOLUMES = (("chest_ct", 3), ("head_mri", 2), ("leg_mri", 2), ("heart_mri", 1))
MODEL = "timm:test_vit"
OPTIONS = (
    "--model", MODEL, "--weights", f"{MODEL}=random", "--slices", "uniform:2", "--device", "cpu",
    "--precision", "fp32", "--actors", "1", "--quiet",
    "--aggregation", "mean", "--aggregation", "gaussian:0.3,0.25", "--shard-volumes", "8",
    "--shard-rows", "5", "--lsh-bits", "32", "--hnsw-codes", "fp16",
)  # fmt: skip
# Two runs over one archive, of which each leaves something out: the second snapshot has further shards, and tombstones.
FIRST, SECOND = ("--exclude", "leg_mri/*"), ("--exclude", "heart_mri/*")


def make_archive(folder: Path) -> None:
    """Write `archive/` and `labels.csv` below `folder`: eight tiny volumes and an object that is none."""
    rows = ["path,subject,modality,body_region,organ"]
    for name, count in VOLUMES:
        kind = KINDS[name]
        for number in range(count):
            path = f"{name}/{number}.nii.gz"
            write_phantom(folder / "archive" / path, name, number, SHAPE)
            rows.append(f"{path},{name}-{number},{kind.modality},{kind.body_region},{kind.organ}")
    (folder / "archive" / "broken.nii.gz").write_bytes(b"\x1f\x8b no volume")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def index(folder: Path, store: Path, *options: str) -> int:
    """Index the archive below `folder`; returns the exit code."""
    labels = ("--labels", str(folder / "labels.csv"))
    return main(["index", str(folder / "archive"), str(store), *labels, *OPTIONS, *options])


def answers(store: Path) -> dict[str, list[tuple[str, float]]]:
    """Hits and scores of a few searches, by query, mode and index."""
    snapshot = open_snapshot(store)
    found = {}
    for query, mode, kind in itertools.product(QUERIES, ("volume", "vote", "late"), ("hnsw", "lsh", "exact")):
        hits = snapshot.search(query, 5, mode=mode, index=kind)
        found[f"{query} {mode} {kind}"] = [(hit.volume_id, round(hit.score, 6)) for hit in hits]
    return found


def machine() -> dict[str, Any]:
    """What vectors and files may depend on besides medret."""
    import torch

    versions = {name: version(name) for name in ("torch", "timm", "pyarrow", "numpy")}
    facts = Path("/proc/cpuinfo")
    has_amx = facts.exists() and "amx_bf16" in facts.read_text()  # such processors sum in another order
    return versions | {"cpu": torch.backends.cpu.get_cpu_capability() + (", AMX" if has_amx else "")}


def files(store: Path) -> set[str]:
    """The embedding and index files; their names carry their contents' checksums."""
    paths = (path for folder in ("embeddings", "indices") for path in (store / folder).rglob("*"))
    return {str(path.relative_to(store)) for path in paths if path.is_file()}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    make_archive(place)
    for options in (FIRST, SECOND):
        index(place, place / "store", *options)
    expected = {"machine": machine(), "answers": answers(place / "store")}
    (place / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
