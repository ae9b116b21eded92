"""Building the indices of a snapshot: one Ray task a shard, all shards in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from medret.embeddings import read_vectors
from medret.embeddings.shards import read_parquet
from medret.index import IndexSettings, IndexShard, build_shard, centred, plan_shards
from medret.pipeline.centres import read_centre
from medret.pipeline.rows import file_row
from medret.recipe import Recipe, digest_of
from medret.schemas import FILES, ROWS
from medret.snapshot import IndexEntry
from medret.storage import Location, read_checked


@dataclass(frozen=True)
class IndexJob:
    """One index shard to build: over all rows of some embedding files of one recipe and aggregation (None: slices).

    files: (path, sha256) pairs. centre: the same of the index's centre, None where it has none.
    """

    recipe: Recipe
    aggregation: str | None
    files: tuple[tuple[str, str], ...]
    centre: tuple[str, str] | None

    def folder(self, settings: IndexSettings) -> str:
        """Digest of what the index is over and how it is built; names its folder below indices/."""
        over = {"recipe": self.recipe.digest, "over": self.aggregation, "centre": self.centre and self.centre[1]}
        return digest_of({**over, "settings": settings.to_json()})


def index_jobs(
    files: pa.Table, centres: pa.Table, recipes: Sequence[Recipe], settings: IndexSettings
) -> list[IndexJob]:
    """The shards of every index over embedding files (schemas.FILES): unions of whole files, in the table's order."""
    jobs = []
    centre_of = {(row["recipe"], row["aggregation"]): (row["path"], row["sha256"]) for row in centres.to_pylist()}
    for recipe in recipes:
        of_recipe = files.filter(pc.equal(files["recipe"], recipe.digest))
        groups: dict[str | None, list[dict[str, Any]]] = {}
        for row in of_recipe.to_pylist():
            groups.setdefault(row["aggregation"], []).append(row)
        for aggregation, rows in groups.items():
            sha256 = {row["path"]: row["sha256"] for row in rows}
            planned = plan_shards([(row["path"], row["rows"]) for row in rows], settings.shard_rows)
            centre = centre_of.get((recipe.digest, aggregation))
            jobs += [
                IndexJob(recipe, aggregation, tuple((path, sha256[path]) for path in group), centre)
                for group in planned
            ]
    return jobs


def build_indices(
    store: Location, jobs: Sequence[IndexJob], settings: IndexSettings, *, use_gpu: bool
) -> tuple[pa.Table, list[IndexEntry], dict[str, float]]:
    """Build all shards; returns their rows of schemas.FILES, an entry an index, and seconds by index kind."""
    # One thread a task (FAISS's own threads would make HNSW graphs depend on timing), as many tasks as CPUs.
    task = ray.remote(num_cpus=1, num_gpus=0.25 if use_gpu else 0, max_retries=3)(_build_one)
    shards: list[IndexShard] = ray.get([task.remote(store, job, settings, use_gpu) for job in jobs])
    files, seconds = [], dict.fromkeys(settings.kinds, 0.0)
    for job, shard in zip(jobs, shards, strict=True):
        for kind, written in shard.files:
            files.append(file_row(written, kind, shard.rows, job.recipe.digest, job.aggregation, shard.shard))
        for kind, spent in shard.seconds.items():
            seconds[kind] = seconds.get(kind, 0.0) + spent
    return pa.Table.from_pylist(files, schema=FILES), _entries(jobs, shards), seconds


def _build_one(store: Location, job: IndexJob, settings: IndexSettings, use_gpu: bool) -> IndexShard:
    """Rows are ordered by volume, plane and position, so a shard does not depend on which task finished first."""
    columns = ["volume_id", "vector"] if job.aggregation else ["volume_id", "plane", "position", "vector"]
    tables = [read_parquet(read_checked(store, path, sha), columns) for path, sha in job.files]
    # Metadata differs from file to file only in what the caller already knows.
    table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    keys = [(name, "ascending") for name in columns if name != "vector"]
    table = table.take(pc.sort_indices(table.select([name for name, _ in keys]), sort_keys=keys))
    if job.aggregation:
        empty = pa.nulls(table.num_rows)
        rows = pa.table([table["volume_id"], empty.cast(pa.string()), empty.cast(pa.int32())], schema=ROWS)
    else:
        rows = table.select(ROWS.names).cast(ROWS)
    folder = f"indices/{job.folder(settings)}"
    vectors = read_vectors(table)
    if job.centre:
        vectors = centred(vectors, read_centre(store, *job.centre)).astype(np.float16)
    return build_shard(store, folder, vectors, rows, settings, use_gpu=use_gpu)


def _entries(jobs: Sequence[IndexJob], shards: Sequence[IndexShard]) -> list[IndexEntry]:
    grouped: dict[tuple[str, str | None], list[tuple[IndexJob, IndexShard]]] = {}
    for job, shard in zip(jobs, shards, strict=True):
        grouped.setdefault((job.recipe.digest, job.aggregation), []).append((job, shard))
    entries = []
    for (digest, aggregation), members in grouped.items():
        rows = sum(shard.rows for _, shard in members)
        recall = {
            kind: sum(shard.recall[kind] * shard.rows for _, shard in members) / rows for kind in members[0][1].recall
        }
        dim = members[0][0].recipe.model.dim
        entries.append(
            IndexEntry(recipe=digest, aggregation=aggregation, rows=rows, dim=dim, shards=len(members), recall=recall)
        )
    return entries
