"""Made-up vectors, and a published store of them, written with the functions that a run writes with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256 as sha256_of
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.index import EXACT, HNSW, IndexSettings, IndexShard, build_shard
from medret.recipe import ModelRecipe, Recipe, SliceRecipe
from medret.schemas import LEDGER, ROWS
from medret.snapshot import Counts, IndexEntry, RecipeEntry, publish
from medret.snapshot.files import StoredFile, files_table
from medret.storage import Location, WrittenFile

SPREAD = 0.7  # of a cluster, in each dimension, where the centres differ by a normal distribution
BATCH_ROWS = 16_384


def clustered(rows: int, dim: int, seed: int | Sequence[int] = 0, clusters: int | None = None) -> NDArray[np.float16]:
    """(rows, dim) unit vectors around `clusters` directions (rows / 100) that share a mean.

    The directions depend on dim and their number alone: shards of one archive share them.
    """
    shape = (clusters or max(1, rows // 100), dim)
    directions = np.random.default_rng(0)
    centres = directions.standard_normal(shape, np.float32) + directions.standard_normal(dim, np.float32)
    rng = np.random.default_rng(seed)
    vectors = np.empty((rows, dim), np.float16)
    for start in range(0, rows, BATCH_ROWS):
        own = centres[rng.integers(len(centres), size=len(vectors[start : start + BATCH_ROWS]))]
        own += SPREAD * rng.standard_normal(own.shape, np.float32)
        vectors[start : start + len(own)] = own / np.linalg.norm(own, axis=1, keepdims=True)
    return vectors


def near(vectors: NDArray[np.float16], count: int, seed: int = 2) -> NDArray[np.float32]:
    """(count, dim) unit vectors that are not among `vectors`, but like them."""
    rng = np.random.default_rng(seed)
    dim = vectors.shape[1]
    own = vectors[rng.choice(len(vectors), count, replace=len(vectors) < count)].astype(np.float32)
    own += 0.3 * rng.standard_normal((count, dim), np.float32) / np.float32(dim**0.5)
    unit: NDArray[np.float32] = (own / np.linalg.norm(own, axis=1, keepdims=True)).astype(np.float32)
    return unit


SETTINGS = IndexSettings(kinds=(HNSW, EXACT))


@dataclass(frozen=True)
class Plan:
    """A store to be made. rows: volumes. slices: of each volume; their vectors get an exact index and no other."""

    rows: int
    dim: int
    slices: int = 1
    settings: IndexSettings = SETTINGS

    @property
    def recipe(self) -> Recipe:
        """As if a model had made the vectors."""
        model = ModelRecipe("synthetic", "0" * 64, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), self.dim, "fp32")
        return Recipe(SliceRecipe(), model)

    @property
    def clusters(self) -> int:
        """Of the vectors."""
        return max(1, self.rows // 100)

    def shards(self, vectors_each: int) -> int:
        """Index shards, of equal size, of an index that has so many vectors of each volume."""
        return -(-self.rows * vectors_each // self.settings.shard_rows)


VOLUMES_A_FILE = 64  # as in a run; embedding files are listed and not written, for a search does not read them


def volume_id(number: int) -> str:
    """The id of a volume."""
    return f"archive/{number % 1009:04d}/volume-{number:08d}.nii.gz"


def embedding_shard(number: int) -> str:
    """The key of an embedding shard."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def write_store(root: str, plan: Plan, processes: int) -> list[IndexShard]:
    """Build every shard, one process a shard and one FAISS thread a process, and publish; those of volume vectors."""
    jobs: list[tuple[str | None, int]] = [("mean", number) for number in range(plan.shards(1))]
    jobs += [(None, number) for number in range(plan.shards(plan.slices))]
    build = partial(_build, root, plan)
    if processes == 1:
        built = [build(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            built = list(pool.map(build, *zip(*jobs, strict=True)))
    made = [(over, shard) for (over, _), shard in zip(jobs, built, strict=True)]
    _publish(Location(root), plan, made)
    return [shard for over, shard in made if over]


def _build(root: str, plan: Plan, over: str | None, number: int) -> IndexShard:
    """One shard over volume vectors (`over` an aggregation), or over slice vectors. Files take turns over shards."""
    each = 1 if over else plan.slices
    held = (place for place in range(plan.rows) if place // VOLUMES_A_FILE % plan.shards(each) == number)
    ids = sorted(map(volume_id, held))
    planes, positions = pa.nulls(len(ids), pa.string()), pa.nulls(len(ids), pa.int32())
    if over is None:
        positions = pa.array(np.tile(np.arange(each, dtype=np.int32) * 10 + 5, len(ids)))
        planes, ids = pa.array(["axial"] * len(positions)), [name for name in ids for _ in range(each)]
    vectors = clustered(len(ids), plan.dim, seed=[number, each], clusters=plan.clusters)
    rows = pa.table([pa.array(ids), planes, positions], schema=ROWS)
    settings = plan.settings if over else replace(plan.settings, kinds=(EXACT,))
    return build_shard(Location(root), f"indices/{'5' * 16 if over else '6' * 16}", vectors, rows, settings)


def _publish(store: Location, plan: Plan, built: Sequence[tuple[str | None, IndexShard]]) -> None:
    digest = plan.recipe.digest
    files = [
        StoredFile.of(file, kind, shard.rows, digest, over, shard.shard, shard.recall.get(kind))
        for over, shard in built
        for kind, file in shard.files
    ]
    for kind, over, each in (("slices", None, plan.slices), ("volumes", "mean", 1)):
        held_in = [shard.shard for name, shard in built if name == over]
        for number in range(-(-plan.rows // VOLUMES_A_FILE)):
            sha256 = sha256_of(f"{kind} {number}".encode()).hexdigest()
            written = WrittenFile(f"embeddings/{digest}/{kind}-{sha256[:16]}.parquet", sha256, 1 << 20)
            file = StoredFile.of(written, kind, VOLUMES_A_FILE * each, digest, over, embedding_shard(number))
            files.append(replace(file, indexed_in=held_in[number % len(held_in)]))
    entries = []
    for over, each in (("mean", 1), (None, plan.slices)):
        own = [shard for name, shard in built if name == over]
        recall = dict(own[0].recall)
        rows = plan.rows * each
        entries.append(
            IndexEntry(recipe=digest, aggregation=over, rows=rows, dim=plan.dim, shards=len(own), recall=recall)
        )
    publish(
        store,
        _ledger(plan),
        (),
        files_table(files),
        medret_version="0",
        run="synthetic",
        archive_uri="/synthetic-archive",
        recipes=[RecipeEntry(recipe=plan.recipe.to_json(), weights_source="made up")],
        aggregations=["mean"],
        index_settings=plan.settings.to_json(),
        indices=entries,
        counts=Counts(listed=plan.rows, embedded=plan.rows, new=plan.rows),
        skipped={},
        slices=plan.rows * plan.slices,
    )


def _ledger(plan: Plan) -> pa.Table:
    """Labels and facts as a run of CT volumes records them."""
    ids = [volume_id(number) for number in range(plan.rows)]
    facts = json.dumps({"shape": [512, 512, 160], "spacing_mm": [0.8, 0.8, 2.5], "spacing_assumed": False})
    per_row: dict[str, Any] = {
        "volume_id": ids,
        "uri": [f"/synthetic-archive/{name}" for name in ids],
        "content_sha256": [sha256_of(name.encode()).hexdigest() for name in ids],
        "subject": [f"subject-{number // 2}" for number in range(plan.rows)],
        "shards": [[(plan.recipe.digest, embedding_shard(at // VOLUMES_A_FILE))] for at in range(plan.rows)],
        "organ": [("liver", "lung", "brain", "colon")[number % 4] for number in range(plan.rows)],
    }
    same = {
        "size_bytes": 1 << 25, "status": "embedded", "modality": "CT", "body_region": "abdomen", "slices": plan.slices,
        "metadata": [("dataset", "synthetic")], "facts": facts,
    }  # fmt: skip
    columns = [
        pa.array(per_row[field.name], field.type)
        if field.name in per_row
        else pa.array([same.get(field.name)], field.type).take(pa.array(np.zeros(plan.rows, np.int64)))
        for field in LEDGER
    ]
    return pa.table(columns, schema=LEDGER)
