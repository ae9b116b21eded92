"""What is known before a run: the live snapshot, what unfinished runs have left in the journal, older snapshots."""

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
    """The live snapshot before this run; id and manifest are None, and the tables empty, when nothing is live."""

    id: str | None
    manifest: Manifest | None
    ledger: pa.Table
    files: pa.Table
    tombstones: pa.Table


@dataclass(frozen=True, slots=True)
class KnownVolume:
    """A ledger row, as far as planning needs it.

    row: in `StoreState.table`. shards: recipe digest -> embedding shard. origin: who made it.
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
    """Every ledger row at hand.

    table: schemas.LEDGER, the live snapshot's rows, then the journal's, then those of older snapshots, from row
    `older_from` on. previous: of the live snapshot. further: of journal and older snapshots.
    """

    table: pa.Table
    previous: Mapping[str, KnownVolume]
    further: Mapping[str, tuple[KnownVolume, ...]]
    older_from: int

    def embedded(self) -> Iterator[KnownVolume]:
        """All rows that have vectors, those of the snapshot first."""
        yield from (volume for volume in self.previous.values() if volume.embedded)
        yield from (volume for volumes in self.further.values() for volume in volumes if volume.embedded)


def live_manifest(store: Location) -> Manifest | None:
    """The manifest of what is live in a store; None for a new store."""
    live = current_id(store)
    return None if live is None else read_manifest(store, live)


def previous_snapshot(store: Location) -> BaseSnapshot:
    """What is live in a store. Raises VersionError for a snapshot of another medret, CorruptError for a damaged one."""
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


def known_volumes(previous: BaseSnapshot, journal: Journal, older: pa.Table | None = None) -> StoreState:
    """The rows of all of them, by volume. older: schemas.LEDGER, of older snapshots."""
    tables = [previous.ledger, journal.ledger, LEDGER.empty_table() if older is None else older]
    by_id: dict[str, KnownVolume] = {}
    further: dict[str, tuple[KnownVolume, ...]] = {}
    at = 0
    for table, origin in zip(tables, get_args(Origin), strict=True):
        for volume in _volumes(table, at, origin):
            if origin == "live":
                by_id[volume.volume_id] = volume
            else:
                further[volume.volume_id] = (*further.get(volume.volume_id, ()), volume)
        at += table.num_rows
    return StoreState(pa.concat_tables(tables), by_id, further, at - tables[-1].num_rows)


def read_known(store: Location) -> tuple[BaseSnapshot, Journal, StoreState]:
    """Everything that is known about a store."""
    previous, journal = previous_snapshot(store), read_journal(store)
    return previous, journal, known_volumes(previous, journal)


def unfinished_elsewhere(
    journal: Journal, objects: Iterable[ArchiveObject], recipes: Collection[str], ruleset_digest: str
) -> frozenset[str]:
    """Paths of the journal entries that a run which is asked for other vectors than these (digests) can still use.

    ruleset_digest: see plan.Target. Entries that speak of objects as they are no more are of no use to anyone.
    """
    if not journal.entries:
        return frozenset()
    listed = {item.volume_id: (item.size_bytes, item.etag, item.mtime) for item in objects}

    def is_of_use(row: Mapping[str, Any]) -> bool:
        if listed.get(row["volume_id"]) != (row["size_bytes"], row["etag"], row["mtime"]):
            return False
        if row["status"] == "embedded":
            return any(recipe not in recipes for recipe, _ in row["shards"])
        return bool(row["judged_by"] != ruleset_digest)

    names = ["volume_id", "size_bytes", "etag", "mtime", "status", "shards", "judged_by"]
    return frozenset(path for path, rows in journal.entries if any(map(is_of_use, rows.select(names).to_pylist())))


def _volumes(table: pa.Table, first_row: int, origin: Origin) -> Iterator[KnownVolume]:
    names = ("volume_id", "size_bytes", "etag", "mtime", "content_sha256", "status", "code", "judged_by", "modality")
    columns = [table[name].to_pylist() for name in names]
    shards = table["shards"].to_pylist()
    rows = enumerate(zip(*columns, shards, strict=True), first_row)
    for row, (volume_id, size, etag, mtime, sha256, status, code, ruleset_digest, modality, held) in rows:
        yield KnownVolume(
            row, volume_id, size, etag, mtime, sha256, status == "embedded", code, ruleset_digest, modality,
            dict(held or ()), origin,
        )  # fmt: skip
