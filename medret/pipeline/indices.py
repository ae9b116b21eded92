"""Bring the indices of a snapshot up to date: keep usable shards, build the others in one Ray task per shard.

Each index has a centre: kept from the live snapshot, or fitted to its embedding files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from medret.embeddings import read_vectors
from medret.index import (
    CENTRE_KIND,
    IndexSettings,
    IndexShard,
    build_shard,
    building_bytes,
    centre_of,
    centred,
    fit_centre,
    refit_needed,
)
from medret.pipeline.cluster import largest_memory
from medret.pipeline.embedding_shards import read_live
from medret.pipeline.layout import Live, findable, plan_index_shards, tombstones, with_indexed_in
from medret.pipeline.store_state import BaseSnapshot
from medret.recipe import Recipe, digest_of
from medret.schemas import ROWS
from medret.snapshot import IndexEntry
from medret.snapshot.files import INDEX_KINDS, LiveFile, StoredFile, files_table, live_files, mean_recall, stored_files
from medret.storage import Location, read_checked

# A mean over this many evenly spaced embedding files is as good as a mean over all files of a large archive.
MAX_FILES = 256
FILES_PER_TASK = 8

Key = tuple[str, str | None]  # recipe digest, aggregation (None: slice vectors)


def centre_files(
    store: Location,
    members: Mapping[Key, Sequence[LiveFile]],
    volumes: int,
    base_files: pa.Table,
    settings: IndexSettings,
) -> list[StoredFile]:
    """Keep or fit the centre of each index; returns no files if the settings are not centred.

    members: embedding files per index. volumes: number of volumes in the snapshot. base_files: of the live snapshot
    (schemas.FILES). `rows` of a centre file is the number of volumes that it was fitted to. An index of one shard
    always gets a newly fitted centre, so that neither depends on how the archive grew.
    """
    if not settings.centred:
        return []
    kept = {(file.recipe, file.aggregation): file for file in stored_files(base_files, [CENTRE_KIND])}
    chosen: dict[Key, StoredFile] = {}
    sums: dict[Key, tuple[list[Any], int]] = {}
    task = ray.remote(num_cpus=1, max_retries=3)(_sum_of)
    for key, files in members.items():
        large = sum(file.live_rows for file in files) > settings.shard_rows
        if large and key in kept and not refit_needed(volumes, kept[key].rows):
            chosen[key] = kept[key]
            continue
        places = np.unique(np.linspace(0, max(len(files) - 1, 0), min(len(files), MAX_FILES)).astype(int))
        picked = [files[place] for place in places.tolist()]
        tasks = [task.remote(store, picked[i : i + FILES_PER_TASK]) for i in range(0, len(picked), FILES_PER_TASK)]
        sums[key] = tasks, sum(file.live_rows for file in picked)
    for key, (tasks, rows) in sums.items():
        chosen[key] = _write(store, key, fit_centre(ray.get(tasks), rows, volumes), volumes)
    return list(chosen.values())


def _sum_of(store: Location, files: Sequence[LiveFile]) -> NDArray[np.float64]:
    tables = (read_live(store, file, ["volume_id", "vector"]) for file in files)
    total: NDArray[np.float64] = sum(
        (read_vectors(table).sum(axis=0, dtype=np.float64) for table in tables if table.num_rows), start=np.zeros(())
    )
    return total


def _write(store: Location, key: Key, centre: NDArray[np.float32], volumes: int) -> StoredFile:
    data = io.BytesIO()
    np.save(data, centre, allow_pickle=False)
    written = store.write_content_addressed("indices/centres", CENTRE_KIND, ".npy", data.getvalue())
    return StoredFile.of(written, CENTRE_KIND, volumes, *key)


def read_centre(store: Location, file: StoredFile) -> NDArray[np.float32]:
    """Read and check the centre in a file that `centre_files` returned."""
    return centre_of(read_checked(store, file.path, file.sha256), store.uri_of(file.path))


@dataclass(frozen=True)
class IndexJob:
    """One index shard to build from the live rows of embedding files of one recipe and aggregation.

    aggregation: None for slice vectors. centre: file with the centre of the index; None if the index is not centred.
    """

    recipe: Recipe
    aggregation: str | None
    files: tuple[LiveFile, ...]
    centre: StoredFile | None

    def folder(self, settings: IndexSettings) -> str:
        """Folder of the index below indices/."""
        return index_folder(self.recipe, self.aggregation, self.centre, settings)


@dataclass(frozen=True)
class Indices:
    """The indices of a snapshot.

    files: schemas.FILES rows of index files, centres and embedding files, the latter with `indexed_in` set. tombstones:
    schemas.TOMBSTONES. entries: one per index. built: number of shards that this run built. seconds: build time per
    kind.
    """

    files: pa.Table
    tombstones: pa.Table
    entries: list[IndexEntry]
    built: int
    seconds: Mapping[str, float]


def index_folder(recipe: Recipe, aggregation: str | None, centre: StoredFile | None, settings: IndexSettings) -> str:
    """Folder of an index below indices/: a digest of everything but the vectors that decides its files."""
    over = {"recipe": recipe.digest, "over": aggregation, "centre": centre and centre.sha256}
    return digest_of({**over, "settings": settings.to_json()})


def make_indices(
    store: Location, recipes: Sequence[Recipe], aggregations: Sequence[str], files: pa.Table, live: Live,
    base: BaseSnapshot, settings: IndexSettings, *, use_gpu: bool,
) -> Indices:  # fmt: skip
    """Bring every index up to date. files: embedding files of the snapshot."""
    stored_shards, files = _shards_of(base.files), findable(files, base, live)
    jobs: list[IndexJob] = []
    kept: list[str] = []
    indexed_in: dict[str, str | None] = {}
    of_index = {
        (recipe.digest, aggregation): live_files(files, live.shards, recipe.digest, aggregation)
        for recipe in recipes
        for aggregation in (None, *aggregations)
    }
    volumes = max((sum(member.live_rows for member in of_index[key]) for key in of_index if key[1]), default=0)
    made = centre_files(store, of_index, volumes, base.files, settings)
    centres = {(file.recipe, file.aggregation): file for file in made}
    for recipe in recipes:
        for aggregation in (None, *aggregations):
            centre = centres.get((recipe.digest, aggregation))
            usable = stored_shards.get(f"indices/{index_folder(recipe, aggregation, centre, settings)}", {})
            members = of_index[recipe.digest, aggregation]
            plan = plan_index_shards(members, {key: group[0].rows for key, group in usable.items()}, settings)
            kept += plan.kept
            made += [file for key in plan.kept for file in usable[key]]
            indexed_in |= {m.file.path: m.file.indexed_in for m in members if m.file.indexed_in in plan.kept}
            jobs += [IndexJob(recipe, aggregation, group, centre) for group in plan.built]
    shards, seconds = _build_all(store, jobs, settings, use_gpu=use_gpu)
    for job, shard in zip(jobs, shards, strict=True):
        indexed_in |= dict.fromkeys((member.file.path for member in job.files), shard.shard)
        for kind, written in shard.files:
            over = job.recipe.digest, job.aggregation, shard.shard
            made.append(StoredFile.of(written, kind, shard.rows, *over, shard.recall.get(kind)))
    placed = with_indexed_in(files, [indexed_in.get(path) for path in files["path"].to_pylist()])
    dead = tombstones(kept, base, placed, live)
    entries = [
        _entry(recipe, aggregation, made, live_files(placed, live.shards, recipe.digest, aggregation))
        for recipe in recipes
        for aggregation in (None, *aggregations)
    ]
    return Indices(pa.concat_tables([placed, files_table(made)]), dead, entries, len(shards), seconds)


def _shards_of(files: pa.Table) -> dict[str, dict[str, list[StoredFile]]]:
    """Index folder -> shard key -> its files. files: schemas.FILES."""
    shards: dict[str, dict[str, list[StoredFile]]] = {}
    for file in stored_files(files, INDEX_KINDS):
        shards.setdefault(file.folder, {}).setdefault(file.shard or "", []).append(file)
    return shards


def _build_all(
    store: Location, jobs: Sequence[IndexJob], settings: IndexSettings, *, use_gpu: bool
) -> tuple[list[IndexShard], dict[str, float]]:
    # One thread per task: with FAISS's own threads, HNSW graphs would depend on timing.
    task = ray.remote(num_cpus=1, num_gpus=0.25 if use_gpu else 0, max_retries=3)(_build_one)
    offered = largest_memory(ray.nodes())  # a task that asks for more would wait for ever
    tasks = [task.options(memory=min(_memory(job), offered)).remote(store, job, settings, use_gpu) for job in jobs]
    shards: list[IndexShard] = ray.get(tasks)
    seconds = dict.fromkeys(settings.kinds, 0.0)
    for shard in shards:
        for kind, spent in shard.seconds.items():
            seconds[kind] = seconds.get(kind, 0.0) + spent
    return shards, seconds


def _memory(job: IndexJob) -> int:
    """The bytes that building a shard takes."""
    return building_bytes(sum(member.live_rows for member in job.files), job.recipe.model.dim)


def _build_one(store: Location, job: IndexJob, settings: IndexSettings, use_gpu: bool) -> IndexShard:
    """Build one shard. `build_shard` sorts the rows, so the shard does not depend on the order of its files."""
    columns = ["volume_id", "vector"] if job.aggregation else ["volume_id", "plane", "position", "vector"]
    # The metadata differs between files only in what the caller already knows.
    table = pa.concat_tables([read_live(store, member, columns).replace_schema_metadata(None) for member in job.files])
    if job.aggregation:
        empty = pa.nulls(table.num_rows)
        rows = pa.table([table["volume_id"], empty.cast(pa.string()), empty.cast(pa.int32())], schema=ROWS)
    else:
        rows = table.select(ROWS.names).cast(ROWS)
    folder = f"indices/{job.folder(settings)}"
    vectors = read_vectors(table)
    if job.centre:
        vectors = centred(vectors, read_centre(store, job.centre)).astype(np.float16)
    return build_shard(store, folder, vectors, rows, settings, use_gpu=use_gpu)


def _entry(
    recipe: Recipe, aggregation: str | None, files: Sequence[StoredFile], members: Sequence[LiveFile]
) -> IndexEntry:
    return IndexEntry(
        recipe=recipe.digest,
        aggregation=aggregation,
        rows=sum(member.live_rows for member in members),
        dim=recipe.model.dim,
        shards=len({member.file.indexed_in for member in members}),
        recall=mean_recall(f for f in files if (f.recipe, f.aggregation) == (recipe.digest, aggregation)),
    )
