"""The last stage, in Ray tasks: vectors of a group of volumes, reduced and written as one embedding shard."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medret.embeddings import Aggregation, EmbeddedVolume, slice_table, unit_slices, volume_table
from medret.embeddings.shards import parquet_bytes
from medret.errors import VolumeError
from medret.pipeline.rows import file_row, ipc_bytes, vectors_column
from medret.recipe import Recipe
from medret.schemas import FILES, LEDGER
from medret.storage import NAME_DIGITS, Location


@dataclass(frozen=True)
class WriteStage:
    """Unit slice vectors and volume vectors of a group of volumes to one set of Parquet files."""

    store: Location
    recipes: tuple[Recipe, ...]
    aggregations: tuple[Aggregation, ...]
    counter: Any

    def run(self, table: pa.Table) -> pa.Table:
        """Writes the shard and returns one row: `ledger` (schemas.LEDGER without labels) and `files`, as Arrow IPC."""
        started = time.monotonic()
        rows = table.to_pylist()
        embedded: dict[str, list[EmbeddedVolume]] = {recipe.digest: [] for recipe in self.recipes}
        for row in rows:
            if row["code"] is None:
                self._reduce(row, embedded)
        kept = [(row["volume_id"], row["content_sha256"]) for row in rows if row["code"] is None]
        shard = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:NAME_DIGITS]
        files = self._write(embedded, shard) if kept else FILES.empty_table()
        ledger = pa.Table.from_pylist([_ledger_row(row, shard) for row in rows], schema=LEDGER)
        slices = sum(len(row["positions"]) for row in rows if row["code"] is None)
        self.counter.add.remote("write", len(rows), slices, 0, time.monotonic() - started)
        return pa.table({"ledger": [ipc_bytes(ledger)], "files": [ipc_bytes(files)]})

    def _reduce(self, row: dict[str, Any], embedded: dict[str, list[EmbeddedVolume]]) -> None:
        """Append the row's unit vectors for every recipe, or none of them and mark the row."""
        volumes = {}
        try:
            for recipe in self.recipes:
                raw = np.frombuffer(row[vectors_column(recipe)], np.float32).reshape(-1, recipe.model.dim)
                vectors, norms = unit_slices(raw)
                volumes[recipe.digest] = EmbeddedVolume(
                    row["volume_id"],
                    row["planes"],
                    np.array(row["positions"], np.int32),
                    np.array(row["relative"], np.float32),
                    np.array(row["positions_mm"], np.float32),
                    vectors,
                    norms,
                )
        except VolumeError as error:
            row["code"], row["reason"] = error.code, f"{recipe.model.name}: {error.reason}"
            return
        for digest, volume in volumes.items():
            embedded[digest].append(volume)

    def _write(self, embedded: dict[str, list[EmbeddedVolume]], shard: str) -> pa.Table:
        files = []
        for recipe in self.recipes:
            volumes, dim, digest = embedded[recipe.digest], recipe.model.dim, recipe.digest
            tables: list[tuple[str, str | None, pa.Table]] = [("slices", None, slice_table(volumes, dim, digest))]
            tables += [("volumes", a.name, volume_table(volumes, a, dim, digest)) for a in self.aggregations]
            for kind, aggregation, content in tables:
                written = self.store.write_named(f"embeddings/{digest}", kind, ".parquet", parquet_bytes(content))
                files.append(file_row(written, kind, content.num_rows, digest, aggregation, shard))
        return pa.Table.from_pylist(files, schema=FILES)


def _ledger_row(row: dict[str, Any], shard: str) -> dict[str, Any]:
    ok = row["code"] is None
    return {
        **{name: row[name] for name in ("volume_id", "uri", "size_bytes", "etag", "mtime", "content_sha256", "facts")},
        "status": "embedded" if ok else "quarantined",
        "code": row["code"],
        "reason": row["reason"],
        "slices": len(row["positions"]) if ok else 0,
        "shard": shard if ok else None,
    }
