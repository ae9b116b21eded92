"""The indices of a snapshot: shards that still serve are kept, the others are built, one Ray task a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from medret.embeddings import read_vectors
from medret.index import IndexSettings, IndexShard, build_shard, centred
from medret.pipeline.centres import centre_files, read_centre
from medret.pipeline.layout import findable, plan_index, tombstones, with_indexed_in
from medret.pipeline.shards import read_live
from medret.pipeline.store_state import BaseSnapshot
from medret.recipe import Recipe, digest_of
from medret.schemas import ROWS
from medret.snapshot import IndexEntry
from medret.snapshot.files import INDEX_KINDS, StoredFile, files_table, mean_recall, stored_files
from medret.snapshot.liveness import LiveFile, LiveShards, live_files
from medret.storage import Location


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
