"""A small published store, made without any model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.embeddings import EmbeddedVolume, parse_aggregation, slice_table, unit_slices, volume_table
from medret.embeddings.shards import parquet_bytes
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER
from medret.snapshot import Counts, IndexEntry, RecipeEntry, publish
from medret.storage import Location

DIM = 8
RECIPE = Recipe(SliceRecipe(), ModelRecipe("made", "0" * 64, 224, (0.5,) * 3, (0.5,) * 3, DIM, "fp32"))


def make_rows(volumes: int, slices: int) -> tuple[list[EmbeddedVolume], list[dict[str, Any]]]:
    embedded, ledger = [], []
    for number in range(volumes):
        raw = np.random.default_rng(number).standard_normal((slices, DIM)).astype(np.float32)
        at = np.arange(slices, dtype=np.int32)
        place = at.astype(np.float32)
        embedded.append(
            EmbeddedVolume(
                f"v{number}.nii.gz", ["axial"] * slices, at, place / np.float32(slices), place, *unit_slices(raw)
            )
        )
        ledger.append(
            {
                "volume_id": f"v{number}.nii.gz",
                "uri": f"/archive/v{number}.nii.gz",
                "size_bytes": 10,
                "status": "embedded",
                "content_sha256": f"{number}",
                "slices": slices,
                "shards": [(RECIPE.digest, "only")],
                "organ": "Brain",
            }
        )
    return embedded, ledger


def fields(volumes: int, slices: int) -> dict[str, Any]:
    recipe = RECIPE.digest
    return {
        "medret_version": "0", "run": "test", "archive_uri": "/archive", "aggregations": ["mean"], "index_settings": {},
        "recipes": [RecipeEntry(recipe=RECIPE.to_json(), weights_source="made for the test")],
        "indices": [IndexEntry(recipe=recipe, aggregation="mean", rows=volumes, dim=DIM, shards=1, recall={})],
        "counts": Counts(listed=volumes, embedded=volumes, new=volumes),
        "skipped": {}, "slices": volumes * slices,
    }  # fmt: skip


@pytest.fixture
def made() -> SimpleNamespace:
    """The makers, for tests that publish on their own."""
    return SimpleNamespace(rows=make_rows, fields=fields, recipe=RECIPE)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Location, str]:
    """A store with one snapshot of four volumes."""
    store = Location(tmp_path / "store")
    embedded, ledger = make_rows(4, 3)
    tables = [
        ("slices", None, slice_table(embedded, DIM, RECIPE.digest)),
        ("volumes", "mean", volume_table(embedded, parse_aggregation("mean"), DIM, RECIPE.digest)),
    ]
    files = []
    for kind, aggregation, table in tables:
        written = store.write_named(f"embeddings/{RECIPE.digest}", kind, ".parquet", parquet_bytes(table))
        files.append({**vars(written), "kind": kind, "rows": table.num_rows, "recipe": RECIPE.digest,
                      "aggregation": aggregation, "shard": "only"})  # fmt: skip
    snapshot_id, _ = publish(
        store, pa.Table.from_pylist(ledger, LEDGER), pa.Table.from_pylist(files, FILES), **fields(4, 3)
    )
    return store, snapshot_id
