"""A store made by a whole run over the phantoms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from medret.embeddings import read_vectors
from medret.embeddings.shards import read_parquet
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
