"""Vectors in the store that the live snapshot has not: of volumes that return, of models that are wanted again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from medret.errors import MedretError
from medret.pipeline.plan import Plan
from medret.pipeline.store_state import StoreState
from medret.schemas import FILES, LEDGER
from medret.snapshot import Manifest, read_files, read_ledger, read_manifest, snapshot_ids
from medret.snapshot.files import EMBEDDING_KINDS, SLICES, StoredFile, files_table, stored_files
from medret.storage import Location


@dataclass(frozen=True)
class Older:
    """What older snapshots hold of a plan's volumes.

    ledger: schemas.LEDGER. files: schemas.FILES of their embedding shards, indexed nowhere. unread: the snapshots that
    could not be read, and why.
    """

    ledger: pa.Table
    files: pa.Table
    unread: tuple[str, ...] = ()


NOTHING = Older(LEDGER.empty_table(), FILES.empty_table())


def read_older(store: Location, live: str | None, plan: Plan, known: StoreState, recipes: Collection[str]) -> Older:
    """Vectors of these recipes (digests) for objects that the plan would embed, newest snapshot first.

    Rows are taken that have the size of such an object, once for each content, so that memory follows what is lacking,
    not the history of the archive. Where nothing is lacking, nothing is read.
    """
    sizes = {step.item.size_bytes for step in plan.of("embed", "check")}
    others = [one for one in reversed(snapshot_ids(store)) if one != live] if sizes else []
    if not others:
        return NOTHING
    present = {path for recipe in recipes for path in store.files(f"embeddings/{recipe}")}
    seen = {(volume.content_sha256, recipe) for volume in known.embedded() for recipe in volume.shards}
    ledgers, files, unread = [NOTHING.ledger], [NOTHING.files], []
    for one in others:
        try:
            manifest = read_manifest(store, one)
            if not any(entry.digest in recipes for entry in manifest.recipes):
                continue
            readable = [file for file in _embedding_files(store, one, manifest, recipes) if file.path in present]
            shards = {file.key for file in readable if file.kind == SLICES}
            rows: list[dict[str, Any]] = []
            for table in manifest.tables_of("ledger"):  # one at a time: they may be large
                piece = read_ledger(store, one, msgspec.structs.replace(manifest, tables=[table])).cast(LEDGER)
                fits = pc.is_in(piece["size_bytes"], pa.array(sorted(sizes), pa.int64()))
                of_use = pc.and_(pc.equal(piece["status"], "embedded"), fits)
                rows += [row for row in piece.filter(of_use).to_pylist() if _trimmed(row, shards, seen)["shards"]]
        except (MedretError, pa.ArrowInvalid, ValueError) as error:  # a snapshot of another medret, or damaged
            unread.append(f"{one}: {error}")
            continue
        pairs = {(row["content_sha256"], recipe) for row in rows for recipe, _ in row["shards"]}
        used = {key for row in rows for key in row["shards"]}
        ledgers.append(pa.Table.from_pylist(rows, schema=LEDGER))
        files.append(files_table(file for file in readable if file.key in used))
        seen |= pairs
    return Older(pa.concat_tables(ledgers), pa.concat_tables(files), tuple(unread))


def _embedding_files(
    store: Location, snapshot_id: str, manifest: Manifest, recipes: Collection[str]
) -> list[StoredFile]:
    """The embedding files of these recipes; what indices hold them is of no use to another snapshot."""
    files = read_files(store, snapshot_id, manifest).cast(FILES)
    return [replace(file, indexed_in=None) for file in stored_files(files, EMBEDDING_KINDS) if file.recipe in recipes]


def _trimmed(
    row: dict[str, Any], shards: Collection[tuple[str, str]], seen: Collection[tuple[str | None, str]]
) -> dict[str, Any]:
    """The ledger row, of its vectors those that lie in these shards and were not seen before."""
    row["shards"] = [
        (recipe, shard)
        for recipe, shard in row["shards"]
        if (recipe, shard) in shards and (row["content_sha256"], recipe) not in seen
    ]
    return row
