"""A small published store, made without any model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.embeddings import (
    Slices,
    parse_aggregation,
    plane_codes,
    read_vectors,
    slice_table,
    unit_slices,
    volume_table,
)
from medret.embeddings.parquet import parquet_bytes, preview_table
from medret.index import IndexSettings, build_shard
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER, QUARANTINE, ROWS, TOMBSTONES
from medret.snapshot import Counts, GateEntry, IndexEntry, RecipeEntry, publish, read_files, read_ledger, read_manifest
from medret.snapshot.publish import write_quarantine
from medret.snapshot.tables import write_entry
from medret.storage import Location
from medret.volume import SliceRef
from medret.volume.previews import make_previews

DIM = 8
RUN = "20260131T094500Z"
SETTINGS = IndexSettings(lsh_bits=64)
RECIPE = Recipe(SliceRecipe(), ModelRecipe("made", "0" * 64, 224, (0.5,) * 3, (0.5,) * 3, DIM, "fp32"))


def make_rows(
    volumes: int, slices: int, names: Sequence[str] = (), seed: int = 0
) -> tuple[list[Slices], list[dict[str, Any]]]:
    embedded, ledger = [], []
    for number in range(seed, seed + volumes):
        name = names[number - seed] if names else f"v{number}.nii.gz"
        raw = np.random.default_rng(number).standard_normal((slices, DIM)).astype(np.float32)
        at = np.arange(slices, dtype=np.int32)
        place = at.astype(np.float32)
        vectors, norms = unit_slices(raw)
        planes = plane_codes(["axial"] * slices)
        embedded.append(Slices(vectors, planes, at, place / np.float32(slices), place, norms, volume_id=name))
        ledger.append(
            {
                "volume_id": name,
                "uri": f"/archive/{name}",
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


def previews_of(embedded: list[Slices]) -> list[dict[str, Any]]:
    """The preview of each volume's first slice: noise of its own, so that its bytes are those of no other."""
    rows = []
    for volume in embedded:
        seed = int.from_bytes(hashlib.sha256(volume.volume_id.encode()).digest()[:4])
        pixels = np.random.default_rng(seed).integers(0, 256, (1, 8, 8), np.uint8)
        assert volume.slice_indices is not None
        ref = SliceRef(str(volume.plane_names[0]), int(volume.slice_indices[0]), 0.0, 0.0)
        (made,) = make_previews([ref], pixels, 1)
        rows.append(
            {"volume_id": volume.volume_id, "plane": made.plane, "position": made.slice_index, "image": made.image}
        )
    return rows


def write_shard(store: Location, embedded: list[Slices], key: str) -> list[dict[str, Any]]:
    tables = [
        ("slices", None, slice_table(embedded, DIM, RECIPE.digest)),
        ("volumes", "mean", volume_table(embedded, parse_aggregation("mean"), DIM, RECIPE.digest)),
        ("previews", None, preview_table(previews_of(embedded), RECIPE.digest)),
    ]
    files = []
    for kind, aggregation, table in tables:
        written = store.write_content_addressed(f"embeddings/{RECIPE.digest}", kind, ".parquet", parquet_bytes(table))
        files.append({**vars(written), "kind": kind, "rows": table.num_rows, "recipe": RECIPE.digest,
                      "aggregation": aggregation, "shard": key})  # fmt: skip
    return files


def write_indices(store: Location, embedded: list[Slices], files: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
            if row["aggregation"] == aggregation and row["kind"] != "previews":
                row["indexed_in"] = shard.shard
    return made


def differences(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> tuple[pa.Table, list[str]]:
    """What `publish` needs to know of two whole ledgers: the rows that are new or differ, and the ids that go."""
    had, has = (
        {row["volume_id"]: row for row in pa.Table.from_pylist([*rows], LEDGER).to_pylist()} for rows in (before, after)
    )
    changed = [row for volume_id, row in has.items() if row != had.get(volume_id)]
    return pa.Table.from_pylist(changed, LEDGER), [volume_id for volume_id in had if volume_id not in has]


def publish_more(
    store: Location,
    embedded: list[Slices],
    ledger: list[dict[str, Any]],
    *,
    parent: str | None = None,
    dead: Sequence[str] = (),
    gates: Sequence[tuple[str, str]] = (),
    pattern: str | None = None,
) -> str:
    """Publish these volumes in shards of their own, beside what `parent` had; dead: what is gone since then."""
    before, had = [], []
    if parent:
        manifest = read_manifest(store, parent)
        before, had = (read(store, parent, manifest).to_pylist() for read in (read_files, read_ledger))
    key = f"{len(before):0>16}"
    for row in ledger:
        if row["volume_id"] in {volume.volume_id for volume in embedded}:
            row["shards"] = [(RECIPE.digest, key)]
    files = write_shard(store, embedded, key)
    files += write_indices(store, embedded, files)
    refused = [row for row in ledger if row["status"] == "quarantined"]
    if refused:
        written = write_quarantine(store, RUN, pa.Table.from_pylist(refused, LEDGER).select(QUARANTINE.names))
        files.append({**vars(written), "kind": "quarantine", "rows": len(refused)})
    tombstones = [
        {"shard": shard, "volume_id": one}
        for shard in sorted({row["shard"] for row in before if row["kind"] == "rows"})
        for one in dead
    ]
    slices, good = sum(row["slices"] for row in ledger), len(ledger) - len(refused)
    entries = [
        IndexEntry(recipe=RECIPE.digest, aggregation=a, rows=n, dim=DIM, shards=1, recall={})
        for a, n in ((None, slices), ("mean", good))
    ]
    new, gone = len(embedded), len(dead)
    counts = Counts(
        listed=len(ledger), embedded=new, new=new, unchanged=good - new, gone=gone, quarantined=len(refused)
    )
    facts = fields(good, 1) | {"index_settings": SETTINGS.to_json(), "indices": entries, "counts": counts}
    facts |= {"slices": slices, "gates": [GateEntry(name=name, found=found, limit="any") for name, found in gates]}
    facts |= {"pattern": pattern}
    kept = [row for row in before if row["kind"] != "quarantine"]
    snapshot_id, _ = publish(
        store, *differences(had, ledger), pa.Table.from_pylist(kept + files, FILES),
        pa.Table.from_pylist(tombstones, TOMBSTONES), parent=parent, **facts,
    )  # fmt: skip
    return snapshot_id


def write_journal(store: Location, embedded: list[Slices], ledger: list[dict[str, Any]]) -> None:
    """What a killed run made of these volumes."""
    key = "f" * 16
    rows = [{**row, "shards": [(RECIPE.digest, key)]} for row in ledger]
    files = pa.Table.from_pylist(write_shard(store, embedded, key), FILES)
    write_entry(store, key, pa.Table.from_pylist(rows, LEDGER), files)


@pytest.fixture
def history(tmp_path: Path) -> SimpleNamespace:
    """A store of two snapshots: v0..v7, then without v2 (a tombstone) and with v8 in shards of its own."""
    store = Location(tmp_path / "history")
    embedded, ledger = make_rows(9, 3)
    first = publish_more(store, embedded[:8], ledger[:8])
    kept = [row for row in ledger if row["volume_id"] != "v2.nii.gz"]
    second = publish_more(store, embedded[8:], kept, parent=first, dead=["v2.nii.gz"])
    store.write_content_addressed(
        "runs", RUN, ".json", json.dumps({"error": "v2.nii.gz was odd, v3.nii.gz not"}).encode()
    )
    vectors = {volume.volume_id: volume.vectors for volume in embedded}
    return SimpleNamespace(store=store, first=first, second=second, vectors=vectors)


@pytest.fixture(scope="session")
def makers() -> SimpleNamespace:
    """The makers of stores with a history."""
    return SimpleNamespace(rows=make_rows, publish=publish_more, journal=write_journal, previews=previews_of)


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
        store, pa.Table.from_pylist(ledger, LEDGER), (), pa.Table.from_pylist(files, FILES), **fields(4, 3)
    )
    return store, snapshot_id
