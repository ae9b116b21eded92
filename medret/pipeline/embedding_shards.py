"""Write embedding shards: the last stage of the stream, and new ones from stored slice vectors, without a model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from medret.embeddings import (
    Aggregation,
    Slices,
    plane_codes,
    read_vectors,
    reducible,
    slice_table,
    unit_slices,
    volume_table,
)
from medret.embeddings.parquet import parquet_bytes, preview_table, read_parquet
from medret.errors import VolumeError
from medret.pipeline.batch_schema import CANARIES, STOPPED, ipc_bytes, vectors_column
from medret.pipeline.counter import Tally
from medret.recipe import Recipe
from medret.schemas import FILES, LEDGER
from medret.schemas import PREVIEWS as PREVIEW_SCHEMA
from medret.snapshot.files import PREVIEWS, SLICES, VOLUMES, LiveFile, StoredFile, files_table, live_rows
from medret.snapshot.tables import write_entry
from medret.storage import NAME_DIGITS, Location, read_checked

NO_SHARD = "quarantine"  # in the name of a journal entry that holds only quarantined volumes

Refused = Mapping[str, VolumeError]  # volume_id -> why an aggregation gives no vector


@dataclass(frozen=True)
class WriteStage:
    """Write the unit slice vectors, volume vectors and previews of a group of volumes as one set of Parquet files."""

    store: Location
    recipes: tuple[Recipe, ...]
    aggregations: tuple[Aggregation, ...]
    ruleset_digest: str
    counter: Any

    def run(self, table: pa.Table) -> pa.Table:
        """Write the shard. Return one row of Arrow IPC: `ledger` (see stream.Streamed), `files` and `canaries`.

        When this returns, the group is durable: first its vectors were written to the store, then the journal entry.
        """
        tally = Tally(self.counter, "write")
        started = time.monotonic()
        tally.begin(table["volume_id"].to_pylist())
        rows = [row for row in table.to_pylist() if row["code"] != STOPPED]
        volumes = [self._reduce(row) if row["code"] is None else None for row in rows]
        pairs = list(zip(rows, volumes, strict=True))
        canaries = [found for row, each in pairs if row["canary"] and each for found in _canary(row, each)]
        own = [(row, each) for row, each in pairs if not row["canary"]]
        embedded = [each for _, each in own if each is not None]
        shard, files = None, FILES.empty_table()
        if embedded:
            by_recipe = {recipe: [each[recipe] for each in embedded] for recipe in self.recipes}
            previews = [
                {"volume_id": row["volume_id"], **each}
                for row, volume in own
                if volume is not None
                for each in row.get("previews") or ()
            ]
            shard, files = write_shard(self.store, by_recipe, self.aggregations, previews)
        ledger = pa.Table.from_pylist([self._ledger_row(row, shard) for row, _ in own], schema=LEDGER)
        if own:
            write_entry(self.store, shard or NO_SHARD, ledger, files)
        for row, _ in own:
            if row["code"] is not None:
                tally.quarantined(row["code"])
        slices = sum(len(row["positions"]) for row, each in own if each is not None)
        tally.add(len(own), slices, int(sum(files["size_bytes"].to_pylist())), time.monotonic() - started)
        tally.report()
        tally.done(table["volume_id"].to_pylist())
        return pa.table(
            {
                "ledger": [ipc_bytes(ledger)],
                "files": [ipc_bytes(files)],
                "canaries": [ipc_bytes(pa.Table.from_pylist(canaries, schema=CANARIES))],
            }
        )

    def _reduce(self, row: dict[str, Any]) -> dict[Recipe, Slices] | None:
        """Unit vectors of the row per recipe; None, and the row marked as quarantined, if a recipe gives none."""
        volumes = {}
        try:
            for recipe in self.recipes:
                raw = np.frombuffer(row[vectors_column(recipe)], np.float32).reshape(-1, recipe.model.dim)
                vectors, norms = unit_slices(raw)
                volume = Slices(
                    vectors,
                    plane_codes(row["planes"]),
                    np.array(row["positions"], np.int32),
                    np.array(row["relative"], np.float32),
                    np.array(row["positions_mm"], np.float32),
                    norms,
                    np.array(row["sources"], object),
                    volume_id=row["volume_id"],
                )
                _, refused = reducible([volume], self.aggregations)
                if refused:
                    raise refused[volume.volume_id]
                volumes[recipe] = volume
        except VolumeError as error:
            row["code"], row["reason"] = error.code, f"{recipe.model.name}: {error.reason}"
            return None
        return volumes

    def _ledger_row(self, row: dict[str, Any], shard: str | None) -> dict[str, Any]:
        ok = row["code"] is None
        names = ("volume_id", "uri", "size_bytes", "etag", "mtime", "content_sha256", "facts", "found", "modality")
        return {
            **{name: row[name] for name in names},
            "status": "embedded" if ok else "quarantined",
            "code": row["code"],
            "reason": row["reason"],
            "slices": len(row["positions"]) if ok else 0,
            "shards": [(recipe.digest, shard) for recipe in self.recipes] if ok else [],
            "judged_by": self.ruleset_digest,
        }


def _canary(row: dict[str, Any], volumes: dict[Recipe, Slices]) -> list[dict[str, Any]]:
    return [
        {
            "volume_id": row["volume_id"],
            "recipe": recipe.digest,
            "content_sha256": row["content_sha256"],
            "vectors": volume.vectors.tobytes(),
        }
        for recipe, volume in volumes.items()
    ]


@dataclass(frozen=True)
class Source:
    """Volumes of one slices file to write to a new shard. names: pairs (id in the file, id in the new shard).

    previews: the file of their previews, if there is one.
    """

    file: StoredFile
    names: tuple[tuple[str, str], ...]
    previews: StoredFile | None = None


@dataclass(frozen=True)
class Rewrite:
    """A new embedding shard of one recipe to make from stored slice vectors: renamed copies, or a compaction."""

    recipe: Recipe
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Derive:
    """Volume vectors to make from a slices file, per aggregation."""

    recipe: Recipe
    file: StoredFile
    aggregations: tuple[Aggregation, ...]


def write_shard(
    store: Location,
    embedded: Mapping[Recipe, Sequence[Slices]],
    aggregations: Sequence[Aggregation],
    previews: Sequence[Mapping[str, Any]] = (),
) -> tuple[str, pa.Table]:
    """Write the slices and volumes files of a shard, per recipe; returns its key and schemas.FILES rows.

    The key is a digest of the slices files, so equal content has the same key. previews: rows of schemas.PREVIEWS, in
    the order of the volumes; they belong to the first recipe.
    """
    files: list[StoredFile] = []
    for recipe, volumes in embedded.items():
        dim, digest = recipe.model.dim, recipe.digest
        tables: list[tuple[str, str | None, pa.Table]] = [(SLICES, None, slice_table(volumes, dim, digest))]
        tables += [(VOLUMES, a.name, volume_table(volumes, a, dim, digest)) for a in aggregations]
        for kind, aggregation, content in tables:
            written = store.write_content_addressed(f"embeddings/{digest}", kind, ".parquet", parquet_bytes(content))
            files.append(StoredFile.of(written, kind, content.num_rows, digest, aggregation))
    if previews:
        first = next(iter(embedded)).digest
        written = store.write_content_addressed(
            f"embeddings/{first}", PREVIEWS, ".parquet", parquet_bytes(preview_table(previews, first))
        )
        files.append(StoredFile.of(written, PREVIEWS, len(previews), first))
    content_of = [(file.recipe, file.sha256) for file in files if file.kind == SLICES]
    shard = hashlib.sha256(json.dumps(content_of).encode()).hexdigest()[:NAME_DIGITS]
    return shard, files_table(replace(file, shard=shard) for file in files)


def read_volumes(store: Location, file: StoredFile) -> list[Slices]:
    """Read the volumes of a slices file, in file order."""
    table = read_parquet(read_checked(store, file.path, file.sha256), name=file.path)
    ids = np.array(table["volume_id"].to_pylist(), dtype=object)
    starts = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)] if len(ids) else [0]
    vectors = read_vectors(table)
    columns = [table[name].to_numpy() for name in ("position", "relative", "position_mm", "norm", "source")]
    every = Slices(vectors, plane_codes(table["plane"].to_pylist()), *columns)
    return [replace(every.take(slice(a, b)), volume_id=ids[a]) for a, b in pairwise(starts)]


def read_live(store: Location, member: LiveFile, columns: list[str]) -> pa.Table:
    """Read the rows of a file that are part of the snapshot. columns: must include volume_id."""
    file = member.file
    table = read_parquet(read_checked(store, file.path, file.sha256), columns, name=file.path)
    return table if member.only is None else live_rows(table, member.only)


def rewrite_all(
    store: Location, jobs: Sequence[Rewrite], aggregations: Sequence[Aggregation]
) -> tuple[dict[tuple[str, str], str], pa.Table, Refused]:
    """Make these shards in Ray tasks.

    Returns (recipe digest, volume_id) -> new shard, schemas.FILES rows, and the volumes without a vector.
    """
    task = ray.remote(num_cpus=1)(_rewrite)
    made: list[tuple[str, pa.Table, Refused]] = ray.get([task.remote(store, job, aggregations) for job in jobs])
    shards = {
        (job.recipe.digest, new): shard
        for job, (shard, _, refused) in zip(jobs, made, strict=True)
        for source in job.sources
        for _, new in source.names
        if new not in refused
    }
    files = pa.concat_tables([FILES.empty_table(), *(files for _, files, _ in made)])
    return shards, files, {volume_id: why for _, _, refused in made for volume_id, why in refused.items()}


def derive_all(store: Location, jobs: Sequence[Derive]) -> tuple[pa.Table, list[Refused]]:
    """Write missing volume vectors in Ray tasks; returns schemas.FILES rows and, per job, the volumes without one."""
    task = ray.remote(num_cpus=1)(_derive)
    made: list[tuple[pa.Table, Refused]] = ray.get([task.remote(store, job) for job in jobs])
    return pa.concat_tables([FILES.empty_table(), *(files for files, _ in made)]), [refused for _, refused in made]


def _rewrite(store: Location, job: Rewrite, aggregations: Sequence[Aggregation]) -> tuple[str, pa.Table, Refused]:
    volumes = []
    for source in job.sources:
        by_id = {volume.volume_id: volume for volume in read_volumes(store, source.file)}
        volumes += [replace(by_id[old], volume_id=new) for old, new in source.names]
    volumes.sort(key=lambda volume: volume.volume_id.encode())
    sound, refused = reducible(volumes, aggregations)
    pictures = {new: found for source in job.sources for new, found in _previews_of(store, source).items()}
    previews = [row for volume in sound for row in pictures.get(volume.volume_id, ())]
    return *write_shard(store, {job.recipe: sound}, aggregations, previews), refused


def _previews_of(store: Location, source: Source) -> dict[str, list[dict[str, Any]]]:
    """The previews of the volumes to write (rows of schemas.PREVIEWS), by their new ids."""
    if source.previews is None:
        return {}
    file = source.previews
    table = read_parquet(read_checked(store, file.path, file.sha256), name=file.path, fields=list(PREVIEW_SCHEMA))
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in live_rows(table, {old for old, _ in source.names}).select(PREVIEW_SCHEMA.names).to_pylist():
        by_id.setdefault(row["volume_id"], []).append(row)
    return {new: [row | {"volume_id": new} for row in by_id.get(old, ())] for old, new in source.names}


def _derive(store: Location, job: Derive) -> tuple[pa.Table, Refused]:
    volumes, refused = reducible(read_volumes(store, job.file), job.aggregations)
    digest, files = job.recipe.digest, []
    for aggregation in job.aggregations:
        table = volume_table(volumes, aggregation, job.recipe.model.dim, digest)
        written = store.write_content_addressed(f"embeddings/{digest}", VOLUMES, ".parquet", parquet_bytes(table))
        files.append(StoredFile.of(written, VOLUMES, table.num_rows, digest, aggregation.name, job.file.shard))
    return files_table(files), refused
