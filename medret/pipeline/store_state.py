"""What the store holds before a run: the live snapshot, the journal of unfinished runs, older snapshots."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from medret.archive import ArchiveObject
from medret.errors import VersionError
from medret.schemas import FILES, LEDGER, TOMBSTONES
from medret.snapshot import (
    Journal,
    Manifest,
    current_id,
    read_files,
    read_journal,
    read_ledger,
    read_manifest,
    read_tombstones,
)
from medret.storage import Location

Origin = Literal["live", "journal", "older"]


@dataclass(frozen=True)
class BaseSnapshot:
    """The live snapshot before this run. For a new store, id and manifest are None and the tables are empty."""

    id: str | None
    manifest: Manifest | None
    ledger: pa.Table
    files: pa.Table
    tombstones: pa.Table


@dataclass(frozen=True, slots=True)
class KnownVolume:
    """The part of a ledger row that planning needs.

    row: its row in `StoreState.table`. shards: recipe digest -> embedding shard. origin: where the row comes from.
    """

    row: int
    volume_id: str
    size_bytes: int
    etag: str | None
    mtime: str | None
    content_sha256: str | None
    embedded: bool
    code: str | None
    ruleset_digest: str | None
    modality: str | None
    shards: Mapping[str, str]
    origin: Origin


@dataclass(frozen=True)
class StoreState:
    """Every ledger row that the store holds.

    table: schemas.LEDGER: rows of the live snapshot, then of the journal, then, from row `older_from`, of older
    snapshots. live: volume_id -> row of the live snapshot. others: volume_id -> rows of journal and older snapshots.
    """

    table: pa.Table
    live: Mapping[str, KnownVolume]
    others: Mapping[str, tuple[KnownVolume, ...]]
    older_from: int

    def embedded(self) -> Iterator[KnownVolume]:
        """Yield all rows that have vectors, the live snapshot's first."""
        yield from (volume for volume in self.live.values() if volume.embedded)
        yield from (volume for volumes in self.others.values() for volume in volumes if volume.embedded)


def live_manifest(store: Location) -> Manifest | None:
    """Read the manifest of the live snapshot; None for a new store."""
    live = current_id(store)
    return None if live is None else read_manifest(store, live)


def read_base(store: Location) -> BaseSnapshot:
    """Read the live snapshot. Raises VersionError if another medret wrote it, CorruptError if it is damaged."""
    live = current_id(store)
    if live is None:
        return BaseSnapshot(None, None, LEDGER.empty_table(), FILES.empty_table(), TOMBSTONES.empty_table())
    manifest = read_manifest(store, live)
    ledger, files = read_ledger(store, live, manifest), read_files(store, live, manifest)
    for table, schema, what in ((ledger, LEDGER, "ledger"), (files, FILES, "table of files")):
        if table.schema.names != schema.names:
            raise VersionError(
                f"{store.uri}: the {what} of snapshot {live} has other columns than this version of medret writes "
                f"({manifest.medret_version}); index into a new store"
            )
    return BaseSnapshot(live, manifest, ledger.cast(LEDGER), files.cast(FILES), read_tombstones(store, live, manifest))


def known_volumes(base: BaseSnapshot, journal: Journal, older: pa.Table | None = None) -> StoreState:
    """Collect the rows of all three by volume. older: rows of older snapshots (schemas.LEDGER)."""
    tables = [base.ledger, journal.ledger, LEDGER.empty_table() if older is None else older]
    live: dict[str, KnownVolume] = {}
    others: dict[str, tuple[KnownVolume, ...]] = {}
    first_row = 0
    for table, origin in zip(tables, get_args(Origin), strict=True):
        for volume in _volumes(table, first_row, origin):
            if origin == "live":
                live[volume.volume_id] = volume
            else:
                others[volume.volume_id] = (*others.get(volume.volume_id, ()), volume)
        first_row += table.num_rows
    return StoreState(pa.concat_tables(tables), live, others, first_row - tables[-1].num_rows)


def read_known(store: Location) -> tuple[BaseSnapshot, Journal, StoreState]:
    """Read the live snapshot and the journal of a store."""
    base, journal = read_base(store), read_journal(store)
    return base, journal, known_volumes(base, journal)


def unfinished_elsewhere(
    journal: Journal, objects: Iterable[ArchiveObject], recipes: Collection[str], ruleset_digest: str
) -> frozenset[str]:
    """Paths of the journal entries that a run with other recipes or rules can still use.

    recipes, ruleset_digest: digests of this run (see plan.Target). An entry is useless to every run if its objects have
    changed since.
    """
    if not journal.entries:
        return frozenset()
    listed = {item.volume_id: (item.size_bytes, item.etag, item.mtime) for item in objects}

    def is_useful(row: Mapping[str, Any]) -> bool:
        if listed.get(row["volume_id"]) != (row["size_bytes"], row["etag"], row["mtime"]):
            return False
        if row["status"] == "embedded":
            return any(recipe not in recipes for recipe, _ in row["shards"])
        return bool(row["judged_by"] != ruleset_digest)

    names = ["volume_id", "size_bytes", "etag", "mtime", "status", "shards", "judged_by"]
    return frozenset(path for path, rows in journal.entries if any(map(is_useful, rows.select(names).to_pylist())))


def _volumes(table: pa.Table, first_row: int, origin: Origin) -> Iterator[KnownVolume]:
    names = ("volume_id", "size_bytes", "etag", "mtime", "content_sha256", "status", "code", "judged_by", "modality")
    columns = [table[name].to_pylist() for name in names]
    shards = table["shards"].to_pylist()
    rows = enumerate(zip(*columns, shards, strict=True), first_row)
    for row, (volume_id, size, etag, mtime, sha256, status, code, ruleset_digest, modality, shard_pairs) in rows:
        yield KnownVolume(
            row, volume_id, size, etag, mtime, sha256, status == "embedded", code, ruleset_digest, modality,
            dict(shard_pairs or ()), origin,
        )  # fmt: skip
