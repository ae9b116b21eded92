"""Synthetic stores: made-up vectors of made-up volumes, written with the functions that a run writes with."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from medret.embeddings import Slices, parse_aggregation, plane_codes, read_vectors, slice_table, volume_table
from medret.embeddings.parquet import parquet_bytes, preview_table
from medret.index import IndexSettings, build_shard, centred
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER, ROWS
from medret.snapshot import Counts, IndexEntry, RecipeEntry, current_id, publish
from medret.snapshot.files import StoredFile
from medret.storage import Location

DIM = 32
ORGANS = ("Liver", "Lung", "Brain")


@dataclass(frozen=True)
class MadeStore:
    """A published store and what went into it."""

    uri: str
    snapshot_id: str
    volumes: tuple[Slices, ...]
    recipe: Recipe
    aggregations: tuple[str, ...]
    vectors: dict[str, NDArray[np.float16]] = field(default_factory=dict)  # aggregation -> (volumes, dim), as stored

    @property
    def ids(self) -> list[str]:
        return [volume.volume_id for volume in self.volumes]


def recipe_of(name: str = "synthetic-model") -> Recipe:
    model = ModelRecipe(name, "0" * 64, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), DIM, "fp32")
    return Recipe(SliceRecipe(planes=("axial", "sagittal")), model)


def synthetic_volumes(count: int, slices: int = 6, seed: int = 0) -> tuple[Slices, ...]:
    """Volumes in three clusters; slices of two planes at positions 10, 20, ..."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((len(ORGANS), DIM)) + 1.5 * rng.standard_normal(DIM)
    volumes = []
    for number in range(count):
        own = centres[number % len(ORGANS)] + 0.5 * rng.standard_normal(DIM)
        raw = own + 0.5 * rng.standard_normal((slices, DIM))
        unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
        planes = plane_codes(["axial" if at % 2 == 0 else "sagittal" for at in range(slices)])
        relative = np.linspace(0, 1, slices, dtype=np.float32)
        positions = np.arange(1, slices + 1, dtype=np.int32) * 10
        volume_id = f"synthetic/{ORGANS[number % len(ORGANS)].lower()}_{number:04d}.nii.gz"
        ones = np.ones(slices, np.float32)
        volumes.append(Slices(unit, planes, positions, relative, relative, ones, volume_id=volume_id))
    return tuple(sorted(volumes, key=lambda volume: volume.volume_id))


def ledger_row(volume_id: str, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(LEDGER.names)
    row.update(volume_id=volume_id, uri=f"/synthetic-archive/{volume_id}", size_bytes=1, status="embedded", slices=6)
    row.update(values)
    return row


def _table(volumes: tuple[Slices, ...], aggregation: str | None, recipe: Recipe) -> pa.Table:
    if aggregation is None:
        return slice_table(volumes, recipe.model.dim, recipe.digest)
    return volume_table(volumes, parse_aggregation(aggregation), recipe.model.dim, recipe.digest)


def make_store(
    root: Path | str,
    volumes: tuple[Slices, ...],
    *,
    settings: IndexSettings | None = None,
    aggregations: tuple[str, ...] = ("mean", "max"),
    per_shard: int = 1_000_000,
    recipe: Recipe | None = None,
    weights_uri: str | None = None,
    ledger: list[dict[str, Any]] | None = None,
    archive: str = "/synthetic-archive",
    centre: Callable[[str | None, NDArray[np.float16], int], NDArray[np.float32]] | None = None,
    previews: Sequence[Mapping[str, Any]] = (),
) -> MadeStore:
    """Publish volumes. centre: from aggregation (None: slices), vectors and number of volumes, an index's centre.

    previews: rows of schemas.PREVIEWS, in the order of the volumes.
    """
    settings = settings or IndexSettings(hnsw_m=8, hnsw_ef_construction=40)
    recipe = recipe or recipe_of()
    dim = recipe.model.dim
    store = Location(str(root))
    files: list[dict[str, Any]] = []
    entries: list[IndexEntry] = []
    stored: dict[str, NDArray[np.float16]] = {}
    for aggregation in (None, *aggregations):
        recalls = []
        own_centre = None
        if centre:
            own_centre = centre(aggregation, read_vectors(_table(volumes, aggregation, recipe)), len(volumes))
            saved = io.BytesIO()
            np.save(saved, own_centre)
            written = store.write_content_addressed("indices/centres", "centre", ".npy", saved.getvalue())
            files.append(
                {
                    "path": written.path,
                    "kind": "centre",
                    "sha256": written.sha256,
                    "size_bytes": written.size_bytes,
                    "rows": len(volumes),
                    "recipe": recipe.digest,
                    "aggregation": aggregation,
                }
            )
        for start in range(0, len(volumes), per_shard):
            part = volumes[start : start + per_shard]
            table = _table(part, aggregation, recipe)
            listed: dict[str, Any] = {}
            if aggregation is None or centre:
                kind = "slices" if aggregation is None else "volumes"
                parquet = store.write_content_addressed(
                    f"embeddings/{recipe.digest}", kind, ".parquet", parquet_bytes(table)
                )
                listed = {
                    "path": parquet.path,
                    "kind": kind,
                    "sha256": parquet.sha256,
                    "size_bytes": parquet.size_bytes,
                    "rows": table.num_rows,
                    "recipe": recipe.digest,
                    "aggregation": aggregation,
                    "shard": f"shard-{start // per_shard}",
                }
                files.append(listed)
            if aggregation is None:
                rows = table.select(ROWS.names).cast(ROWS)
            else:
                empty = pa.nulls(table.num_rows)
                rows = pa.table([table["volume_id"], empty.cast(pa.string()), empty.cast(pa.int32())], schema=ROWS)
                parts = [stored[aggregation]] if aggregation in stored else []
                stored[aggregation] = np.concatenate([*parts, read_vectors(table)])
            vectors = read_vectors(table)
            if own_centre is not None:
                vectors = centred(vectors, own_centre).astype(np.float16)
            shard = build_shard(store, f"indices/{recipe.digest}", vectors, rows, settings)
            if centre:
                listed["indexed_in"] = shard.shard
            recalls.append(dict(shard.recall))
            for kind, file in shard.files:
                values = (
                    file.path,
                    kind,
                    file.sha256,
                    file.size_bytes,
                    shard.rows,
                    recipe.digest,
                    aggregation,
                    shard.shard,
                    None,
                    shard.recall.get(kind),
                )
                files.append(dict(zip(FILES.names, values, strict=True)))
        rows_in_all = sum(len(volume.vectors) for volume in volumes) if aggregation is None else len(volumes)
        entries.append(
            IndexEntry(
                recipe=recipe.digest,
                aggregation=aggregation,
                rows=rows_in_all,
                dim=dim,
                shards=len(recalls),
                recall=recalls[0],
            )
        )
    for start in range(0, len(volumes), per_shard):
        ids = {volume.volume_id for volume in volumes[start : start + per_shard]}
        if own := [row for row in previews if row["volume_id"] in ids]:
            table = preview_table(own, recipe.digest)
            parquet = store.write_content_addressed(
                f"embeddings/{recipe.digest}", "previews", ".parquet", parquet_bytes(table)
            )
            shard_key = f"shard-{start // per_shard}"
            files.append(asdict(StoredFile.of(parquet, "previews", len(own), recipe.digest, None, shard_key)))
    if ledger is None:
        ledger = [
            ledger_row(
                volume.volume_id,
                subject=f"subject-{number // 2}",
                modality="CT",
                organ=volume.volume_id.split("/")[1].split("_")[0].capitalize(),
                metadata=[("source", "made up"), ("organ", "not this one")],
                content_sha256=f"{number:064x}",
                shards=[(recipe.digest, f"shard-{number // per_shard}")],
            )
            for number, volume in enumerate(volumes)
        ]
    embedded = sum(row["status"] == "embedded" for row in ledger)
    snapshot_id, _ = publish(
        store,
        pa.Table.from_pylist(ledger, schema=LEDGER),
        (),
        pa.Table.from_pylist(files, schema=FILES),
        medret_version="0",
        run="synthetic",
        parent=current_id(store),
        archive_uri=archive,
        recipes=[
            RecipeEntry(
                recipe=recipe.to_json(),
                weights_source="made up",
                weights_uri=weights_uri,
                random_weights=weights_uri is not None and weights_uri.startswith("random"),
            )
        ],
        aggregations=list(aggregations),
        index_settings=settings.to_json(),
        indices=entries,
        counts=Counts(
            listed=len(ledger), embedded=embedded, new=embedded, quarantined=len(ledger) - embedded, skipped=0
        ),
        skipped={},
        slices=sum(len(volume.vectors) for volume in volumes),
    )
    return MadeStore(store.uri, snapshot_id, volumes, recipe, aggregations, stored)


@pytest.fixture(scope="session")
def store_maker() -> Callable[..., MadeStore]:
    return make_store


@pytest.fixture(scope="session")
def volume_maker() -> Callable[..., tuple[Slices, ...]]:
    return synthetic_volumes


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> MadeStore:
    """30 volumes of 6 slices in 4 shards an index."""
    return make_store(tmp_path_factory.mktemp("synthetic-store"), synthetic_volumes(30), per_shard=8)


@pytest.fixture(autouse=True)
def _own_cache_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(made_store: Any, tmp_path: Path) -> Location:
    """A copy of the made store that a test may forge."""
    shutil.copytree(made_store.uri, tmp_path / "store")
    return Location(tmp_path / "store")
