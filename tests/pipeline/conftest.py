"""A store made by a whole run over the phantoms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.compute as pc
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from medret.cli import main
from medret.embeddings import read_vectors
from medret.embeddings.parquet import read_parquet
from medret.snapshot import current_id, read_files, read_ledger, read_manifest
from medret.storage import Location


def read_store(uri: str | Path) -> SimpleNamespace:
    """The live snapshot's manifest, ledger rows by id, and a function that gives each volume's slice vectors."""
    store = Location(uri)
    snapshot_id = current_id(store)
    assert snapshot_id is not None
    manifest = read_manifest(store, snapshot_id)
    files = read_files(store, snapshot_id, manifest)
    ledger = {row["volume_id"]: row for row in read_ledger(store, snapshot_id, manifest).to_pylist()}

    def vectors(model: str, kind: str = "slices", aggregation: str | None = None) -> dict[str, NDArray[np.float16]]:
        digest = next(e.recipe["digest"] for e in manifest.recipes if e.recipe["model"]["name"] == model)
        chosen = files.filter(pc.and_(pc.equal(files["recipe"], digest), pc.equal(files["kind"], kind)))
        found: dict[str, NDArray[np.float16]] = {}
        for row in chosen.to_pylist():
            if row["aggregation"] != aggregation:
                continue
            table = read_parquet(store.read(row["path"]))
            all_vectors = read_vectors(table)
            ids = np.array(table["volume_id"].to_pylist())
            for volume_id in dict.fromkeys(ids.tolist()):
                found[volume_id] = all_vectors[ids == volume_id]
        return found

    return SimpleNamespace(store=store, manifest=manifest, files=files, ledger=ledger, vectors=vectors)


@pytest.fixture(scope="session")
def opened() -> Callable[[str | Path], SimpleNamespace]:
    """`opened(uri)`: what the store at `uri` holds."""
    return read_store


@pytest.fixture(scope="session")
def store(phantom_archive: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms, indexed with real weights and two aggregations."""
    folder = tmp_path_factory.mktemp("run") / "store"
    labels = phantom_archive.parent / "labels.csv"
    code = main(
        ["index", str(phantom_archive), str(folder), "--labels", str(labels), "--slices", "uniform:8", "--quiet",
         "--aggregation", "mean", "--aggregation", "gaussian:0.5,0.25", "--shard-volumes", "8"]
    )  # fmt: skip
    assert code == 0
    return folder


def copies(path: Path) -> dict[str, nib.nifti1.Nifti1Image]:
    """The same scan in other clothes: mirrored or rotated in header and voxels, its anatomy mirrored, re-sliced."""
    image: Any = nib.load(path)
    voxels, affine = np.asanyarray(image.dataobj), image.affine
    voxels = voxels[..., 0] if voxels.ndim == 4 else voxels
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = voxels.shape[0] - 1
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(("P", "I", "R")))
    made = {
        "stored mirrored": (voxels[::-1], affine @ flip),
        "stored rotated": (apply_orientation(voxels, turn), affine @ inv_ornt_aff(turn, voxels.shape)),
    }
    upright: Any = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    ras = np.asanyarray(upright.dataobj)
    made["anatomy mirrored"] = (ras[::-1], upright.affine)
    places = np.arange(0, ras.shape[2] - 1, 4 / 3)  # slices a third further apart, between the old ones
    below, share = places.astype(int), places % 1
    blended = ras[..., below] * (1 - share) + ras[..., below + 1] * share
    made["re-sliced"] = (blended.astype(np.float32), upright.affine @ np.diag([1, 1, 4 / 3, 1]))
    return {name: nib.Nifti1Image(np.ascontiguousarray(data), matrix) for name, (data, matrix) in made.items()}


@pytest.fixture(scope="session")
def copies_of() -> Callable[[Path], dict[str, Any]]:
    """`copies_of(path)`: name -> image of the same scan, stored or cut otherwise."""
    return copies
