"""The last stage, in Ray tasks: reduce a group of volumes to vectors, write one embedding shard, journal it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from medret.embeddings import Aggregation, Slices, plane_codes, reducible, unit_slices
from medret.errors import VolumeError
from medret.pipeline.batch_schema import CANARIES, STOPPED, ipc_bytes, vectors_column
from medret.pipeline.counter import Tally
from medret.pipeline.embedding_shards import write_shard
from medret.recipe import Recipe
from medret.schemas import FILES, LEDGER
from medret.snapshot.journal import write_entry
from medret.storage import Location

NO_SHARD = "quarantine"  # in the name of a journal entry that holds only quarantined volumes


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
