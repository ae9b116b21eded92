"""The indices of a snapshot: keep the shards that still serve, build the others, one Ray task per shard.

Each index has a centre: kept from the snapshot before, or fitted to its embedding files.
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
    centre_of,
    centred,
    fit_centre,
    refit_needed,
)
from medret.pipeline.embedding_shards import read_live
from medret.pipeline.layout import findable, plan_index, tombstones, with_indexed_in
from medret.pipeline.store_state import BaseSnapshot
from medret.recipe import Recipe, digest_of
from medret.schemas import ROWS
from medret.snapshot import IndexEntry
from medret.snapshot.files import INDEX_KINDS, StoredFile, files_table, mean_recall, stored_files
from medret.snapshot.liveness import LiveFile, LiveShards, live_files
from medret.storage import Location, read_checked

# A mean over so many embedding files, evenly spaced, is as good as one over all of a larger archive.
FILES_MAX = 256
FILES_A_TASK = 8

Key = tuple[str, str | None]  # recipe digest, aggregation (None: slice vectors)


def centre_files(
    store: Location,
    members: Mapping[Key, Sequence[LiveFile]],
    volumes: int,
    previous: pa.Table,
    settings: IndexSettings,
) -> list[StoredFile]:
    """Keep or fit the centre of each index; no files when the settings want no centres.

    members: the files of each index. volumes: in the snapshot. previous: FILES of the snapshot before. `rows` of a
    centre counts the volumes that it was fitted on. An index of one shard is built anew anyway, and so is its centre:
    it does not depend on how the archive grew.
    """
    if not settings.centred:
        return []
    kept = {(file.recipe, file.aggregation): file for file in stored_files(previous, [CENTRE_KIND])}
    chosen: dict[Key, StoredFile] = {}
    sums: dict[Key, tuple[list[Any], int]] = {}
    task = ray.remote(num_cpus=1, max_retries=3)(_sum_of)
    for key, files in members.items():
        large = sum(file.live_rows for file in files) > settings.shard_rows
        if large and key in kept and not refit_needed(volumes, kept[key].rows):
            chosen[key] = kept[key]
            continue
        every = np.unique(np.linspace(0, max(len(files) - 1, 0), min(len(files), FILES_MAX)).astype(int))
        picked = [files[place] for place in every.tolist()]
        tasks = [task.remote(store, picked[i : i + FILES_A_TASK]) for i in range(0, len(picked), FILES_A_TASK)]
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
    """The centre in a file that `centre_files` names, checked."""
    return centre_of(read_checked(store, file.path, file.sha256), store.uri_of(file.path))


@dataclass(frozen=True)
class IndexJob:
    """One index shard to build: over the live rows of some embedding files of one recipe and aggregation.

    aggregation: None for slice vectors. centre: the file of the index's centre, None where it has none.
    """

    recipe: Recipe
    aggregation: str | None
    files: tuple[LiveFile, ...]
    centre: StoredFile | None

    def folder(self, settings: IndexSettings) -> str:
        """Folder below indices/, named after what the index is over and how it is built."""
        return index_folder(self.recipe, self.aggregation, self.centre, settings)


@dataclass(frozen=True)
class Indices:
    """The indices of a snapshot.

    files: schemas.FILES rows of index files, of centres, and of the embedding files, which say what they are indexed
    in. tombstones: schemas.TOMBSTONES. entries: one an index. built: shards made by this run. seconds: of building, by
    kind.
    """

    files: pa.Table
    tombstones: pa.Table
    entries: list[IndexEntry]
    built: int
    seconds: Mapping[str, float]


def index_folder(recipe: Recipe, aggregation: str | None, centre: StoredFile | None, settings: IndexSettings) -> str:
    """Folder below indices/ of an index: a digest of all that decides its files besides the vectors."""
    over = {"recipe": recipe.digest, "over": aggregation, "centre": centre and centre.sha256}
    return digest_of({**over, "settings": settings.digest_inputs()})


def make_indices(
    store: Location, recipes: Sequence[Recipe], aggregations: Sequence[str], files: pa.Table, live: LiveShards,
    previous: BaseSnapshot, settings: IndexSettings, *, use_gpu: bool,
) -> Indices:  # fmt: skip
    """Bring every index up to date. files: the snapshot's embedding files. live: what its ledger points to."""
    before, files = _shards_of(previous.files), findable(files, previous, live)
    jobs: list[IndexJob] = []
    kept: list[str] = []
    indexed_in: dict[str, str | None] = {}
    of_index = {
        (recipe.digest, aggregation): live_files(files, live, recipe.digest, aggregation)
        for recipe in recipes
        for aggregation in (None, *aggregations)
    }
    volumes = max((sum(member.live_rows for member in of_index[key]) for key in of_index if key[1]), default=0)
    made = centre_files(store, of_index, volumes, previous.files, settings)
    centres = {(file.recipe, file.aggregation): file for file in made}
    for recipe in recipes:
        for aggregation in (None, *aggregations):
            centre = centres.get((recipe.digest, aggregation))
            usable = before.get(f"indices/{index_folder(recipe, aggregation, centre, settings)}", {})
            members = of_index[recipe.digest, aggregation]
            plan = plan_index(members, {key: group[0].rows for key, group in usable.items()}, settings)
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
    dead = tombstones(kept, previous, placed, live)
    entries = [
        _entry(recipe, aggregation, made, live_files(placed, live, recipe.digest, aggregation))
        for recipe in recipes
        for aggregation in (None, *aggregations)
    ]
    return Indices(pa.concat_tables([placed, files_table(made)]), dead, entries, len(shards), seconds)


def _shards_of(files: pa.Table) -> dict[str, dict[str, list[StoredFile]]]:
    """Index folder -> shard -> its files (files: schemas.FILES)."""
    shards: dict[str, dict[str, list[StoredFile]]] = {}
    for file in stored_files(files, INDEX_KINDS):
        shards.setdefault(file.folder, {}).setdefault(file.shard or "", []).append(file)
    return shards


def _build_all(
    store: Location, jobs: Sequence[IndexJob], settings: IndexSettings, *, use_gpu: bool
) -> tuple[list[IndexShard], dict[str, float]]:
    # One thread a task (FAISS's own threads would make HNSW graphs depend on timing), as many tasks as CPUs.
    task = ray.remote(num_cpus=1, num_gpus=0.25 if use_gpu else 0, max_retries=3)(_build_one)
    shards: list[IndexShard] = ray.get([task.remote(store, job, settings, use_gpu) for job in jobs])
    seconds = dict.fromkeys(settings.kinds, 0.0)
    for shard in shards:
        for kind, spent in shard.seconds.items():
            seconds[kind] = seconds.get(kind, 0.0) + spent
    return shards, seconds


def _build_one(store: Location, job: IndexJob, settings: IndexSettings, use_gpu: bool) -> IndexShard:
    """`build_shard` puts rows in order, so a shard does not depend on which task finished first."""
    columns = ["volume_id", "vector"] if job.aggregation else ["volume_id", "plane", "position", "vector"]
    # Metadata differs from file to file only in what the caller already knows.
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
