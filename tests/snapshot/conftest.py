"""A small published store, made without any model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.embeddings import (
    EmbeddedVolume,
    parse_aggregation,
    read_vectors,
    slice_table,
    unit_slices,
    volume_table,
)
from medret.embeddings.shards import parquet_bytes
from medret.index import IndexSettings, build_shard
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER, ROWS, TOMBSTONES
from medret.snapshot import Counts, IndexEntry, RecipeEntry, publish
from medret.storage import Location

DIM = 8
RUN = "20260131T094500Z"
SETTINGS = IndexSettings(lsh_bits=64)
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
        "medret_version": "0", "run": RUN, "archive_uri": "/archive", "aggregations": ["mean"], "index_settings": {},
        "recipes": [RecipeEntry(recipe=RECIPE.to_json(), weights_source="made for the test")],
        "indices": [IndexEntry(recipe=recipe, aggregation="mean", rows=volumes, dim=DIM, shards=1, recall={})],
        "counts": Counts(listed=volumes, embedded=volumes, new=volumes),
        "skipped": {}, "slices": volumes * slices,
    }  # fmt: skip


def write_shard(store: Location, embedded: list[EmbeddedVolume], key: str) -> list[dict[str, Any]]:
    tables = [
        ("slices", None, slice_table(embedded, DIM, RECIPE.digest)),
        ("volumes", "mean", volume_table(embedded, parse_aggregation("mean"), DIM, RECIPE.digest)),
    ]
    files = []
    for kind, aggregation, table in tables:
        written = store.write_named(f"embeddings/{RECIPE.digest}", kind, ".parquet", parquet_bytes(table))
        files.append({**vars(written), "kind": kind, "rows": table.num_rows, "recipe": RECIPE.digest,
                      "aggregation": aggregation, "shard": key})  # fmt: skip
    return files


def write_indices(store: Location, embedded: list[EmbeddedVolume], files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Index files over these volumes; marks the embedding files (which must be theirs) as indexed there."""
    made = []
    for aggregation in (None, "mean"):
        if aggregation:
            table = volume_table(embedded, parse_aggregation("mean"), DIM, RECIPE.digest)
            ids, plane, position = (
                table["volume_id"],
                pa.nulls(len(table), pa.string()),
                pa.nulls(len(table), pa.int32()),
            )
        else:
            table = slice_table(embedded, DIM, RECIPE.digest)
            ids, plane, position = table["volume_id"], table["plane"], table["position"]
        rows = pa.table([ids, plane, position], schema=ROWS)
        shard = build_shard(
            store, f"indices/{(aggregation or 'none').encode().hex():0>16}", read_vectors(table), rows, SETTINGS
        )
        made += [
            {**vars(written), "kind": kind, "rows": shard.rows, "recipe": RECIPE.digest, "aggregation": aggregation,
             "shard": shard.shard, "recall": shard.recall.get(kind)}
            for kind, written in shard.files
        ]  # fmt: skip
        for row in files:
            if row["aggregation"] == aggregation:
                row["indexed_in"] = shard.shard
    return made


@pytest.fixture
def history(tmp_path: Path) -> SimpleNamespace:
    """A store of two snapshots: v0..v7, then without v2 (a tombstone) and with v8 in shards of its own."""
    store = Location(tmp_path / "history")
    embedded, ledger = make_rows(9, 3)
    old = write_shard(store, embedded[:8], "old")
    old_indices = write_indices(store, embedded[:8], old)
    for row in ledger:
        row["shards"] = [(RECIPE.digest, "new" if row["volume_id"] == "v8.nii.gz" else "old")]
    facts = fields(8, 3) | {"index_settings": SETTINGS.to_json()}
    entries = [IndexEntry(recipe=RECIPE.digest, aggregation=a, rows=n, dim=DIM, shards=1, recall={})
               for a, n in ((None, 24), ("mean", 8))]  # fmt: skip
    table = pa.Table.from_pylist
    first, _ = publish(
        store, table(ledger[:8], LEDGER), table(old + old_indices, FILES), **facts | {"indices": entries}
    )
    new = write_shard(store, embedded[8:], "new")
    new_indices = write_indices(store, embedded[8:], new)
    keys = {row["shard"] for row in old_indices}
    dead = [{"shard": key, "volume_id": "v2.nii.gz"} for key in keys]
    facts |= {"counts": Counts(listed=8, embedded=1, new=1, unchanged=7, gone=1), "indices": entries}
    second, _ = publish(
        store, table([row for row in ledger if row["volume_id"] != "v2.nii.gz"], LEDGER),
        table(old + new + old_indices + new_indices, FILES), table(dead, TOMBSTONES), parent=first, **facts,
    )  # fmt: skip
    store.write_named("runs", RUN, ".json", json.dumps({"error": "v2.nii.gz was odd, v3.nii.gz not"}).encode())
    vectors = {volume.volume_id: volume.vectors for volume in embedded}
    return SimpleNamespace(store=store, first=first, second=second, vectors=vectors)


@pytest.fixture
def made() -> SimpleNamespace:
    """The makers, for tests that publish on their own."""
    return SimpleNamespace(rows=make_rows, fields=fields, recipe=RECIPE)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Location, str]:
    """A store with one snapshot of four volumes."""
    store = Location(tmp_path / "store")
    embedded, ledger = make_rows(4, 3)
    files = write_shard(store, embedded, "only")
    snapshot_id, _ = publish(
        store, pa.Table.from_pylist(ledger, LEDGER), pa.Table.from_pylist(files, FILES), **fields(4, 3)
    )
    return store, snapshot_id
