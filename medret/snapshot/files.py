"""The files of a snapshot as typed values, which of them holds a volume's vectors, and which of their rows are live.

The FILES table (schemas.FILES) stays Arrow; `stored_files` makes Python objects only of the rows that a caller selects.

The ledger assigns each volume to one embedding shard per recipe. Its rows there are live; all other rows of the files
are dead. Index shards hold the rows of whole embedding files; tombstones list the dead rows among them.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.embeddings.parquet import as_corrupt, judged, open_parquet
from medret.index import CENTRE_KIND, KINDS, ROWS_KIND, read_rows
from medret.index.columns import int32_view
from medret.schemas import FILES
from medret.snapshot.names import check_files
from medret.storage import Location, WrittenFile

SLICES, VOLUMES, PREVIEWS = "slices", "volumes", "previews"
EMBEDDING_KINDS = (SLICES, VOLUMES)  # files with vectors
SHARD_KINDS = (*EMBEDDING_KINDS, PREVIEWS)  # all files of an embedding shard
INDEX_KINDS = (*KINDS, ROWS_KIND)
ANY: Literal["*"] = "*"  # no aggregation has this name

ShardKey = tuple[str, str]  # of an embedding shard: recipe digest and key

LIVE_COLUMNS = ["volume_id", "slices", "shards"]  # columns of the ledger that decide which rows are live


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a snapshot, as the FILES table lists it.

    path: below the store. recipe: digest; None for the quarantine table. aggregation: None for slice vectors and
    previews.
    shard: key of the embedding or index shard that the file belongs to. indexed_in: key of the index shard that holds
    the vectors of this embedding file. recall: recall@10 of this index against exact search.
    """

    path: str
    kind: str
    sha256: str
    size_bytes: int
    rows: int
    recipe: str | None = None
    aggregation: str | None = None
    shard: str | None = None
    indexed_in: str | None = None
    recall: float | None = None

    @classmethod
    def of(
        cls,
        written: WrittenFile,
        kind: str,
        rows: int,
        recipe: str | None = None,
        aggregation: str | None = None,
        shard: str | None = None,
        recall: float | None = None,
    ) -> StoredFile:
        """Describe a file that was just written."""
        return cls(
            written.path, kind, written.sha256, written.size_bytes, rows, recipe, aggregation, shard, recall=recall
        )

    @property
    def folder(self) -> str:
        """Path of the file's folder below the store."""
        return self.path.rpartition("/")[0]

    @property
    def key(self) -> ShardKey:
        """Return the embedding shard of an embedding file."""
        return self.recipe or "", self.shard or ""


NAMES = tuple(field.name for field in fields(StoredFile))


def stored_files(
    table: pa.Table, kinds: Collection[str] = (), *, recipe: str | None = None, aggregation: str | None = ANY
) -> list[StoredFile]:
    """Return the files of a FILES table, in its order, that have these kinds, this recipe (digest) and aggregation."""
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    if kinds:
        table = table.filter(pc.is_in(table["kind"], pa.array(sorted(kinds), table["kind"].type)))
    if recipe is not None:
        table = table.filter(pc.equal(table["recipe"], recipe))
    if aggregation != ANY:
        chosen = table["aggregation"]
        table = table.filter(pc.is_null(chosen) if aggregation is None else pc.equal(chosen, aggregation))
    columns = (table[name].to_pylist() for name in NAMES)
    return [StoredFile(*row) for row in zip(*columns, strict=True)]


def files_table(files: Iterable[StoredFile]) -> pa.Table:
    """Make a FILES table of these files, in their order."""
    rows = list(files)
    return pa.table([pa.array([getattr(row, field.name) for row in rows], field.type) for field in FILES], schema=FILES)


def slices_files(table: pa.Table) -> dict[ShardKey, StoredFile]:
    """Return the slices file of each embedding shard; the first one if there are several."""
    return {file.key: file for file in reversed(stored_files(table, [SLICES]))}


def previews_files(table: pa.Table) -> dict[ShardKey, StoredFile]:
    """Return the previews file of each embedding shard that has one; the first one if there are several."""
    return {file.key: file for file in reversed(stored_files(table, [PREVIEWS]))}


def read_index_files(path: Path) -> list[StoredFile]:
    """Read the index files from a FILES table on disk; do not decode the many rows of embedding files."""
    file = open_parquet(path, str(path), FILES)
    size_bytes = path.stat().st_size
    listed: list[dict[str, object]] = []
    with as_corrupt(str(path)):
        for group in range(file.num_row_groups):
            kinds = file.read_row_group(group, ["kind"])["kind"].combine_chunks()
            names = kinds.dictionary.to_pylist()
            codes = [code for code, kind in enumerate(names) if kind in (*INDEX_KINDS, CENTRE_KIND)]
            rows = np.flatnonzero(np.isin(int32_view(kinds.indices), codes)).tolist()
            if rows:  # the table is sorted by path, so these rows are close together
                table = file.read_row_group(group).slice(rows[0], rows[-1] + 1 - rows[0])
                span = judged(table, size_bytes).to_pylist()
                listed += [span[row - rows[0]] for row in rows]
        check_files(listed)
        return [StoredFile(**{name: row[name] for name in NAMES}) for row in listed]  # type: ignore[arg-type]


def mean_recall(files: Iterable[StoredFile]) -> dict[str, float]:
    """Return the recall@10 of each index kind among these files, weighted by the rows of its shards."""
    measured: dict[str, list[StoredFile]] = {}
    for file in files:
        if file.recall is not None:
            measured.setdefault(file.kind, []).append(file)
    return {
        kind: sum((file.recall or 0.0) * file.rows for file in members) / sum(file.rows for file in members)
        for kind, members in sorted(measured.items())
    }


@dataclass(frozen=True)
class Entries:
    """The vectors that the rows of a ledger point to: one entry per volume and recipe, as arrays of one length.

    rows: row of the ledger. places: the embedding shard, as its place in `keys`.
    """

    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    keys: Sequence[ShardKey]


def entries(shards: pa.ChunkedArray) -> Entries:
    """Flatten the column `shards` of a ledger."""
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    texts = pa.field("key", shards.type.key_type, nullable=False), pa.field("value", shards.type.item_type)
    lists = [chunk.cast(pa.list_(pa.struct(texts))) for chunk in shards.chunks]
    firsts = np.cumsum([0, *map(len, lists)])
    rows = [first + pc.list_parent_indices(pairs).to_numpy() for first, pairs in zip(firsts, lists, strict=False)]
    names, codes = [], []
    for part in (0, 1):  # recipes, then shards
        texts = pa.chunked_array([pc.list_flatten(pairs).field(part) for pairs in lists], shards.type.key_type)
        coded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
        coded = coded.unify_dictionaries().combine_chunks()
        names.append(coded.dictionary.to_pylist())
        codes.append(coded.indices.to_numpy().astype(np.int64))
    pairs, places = np.unique(codes[0] * len(names[1]) + codes[1], return_inverse=True)
    keys = [(names[0][pair // len(names[1])], names[1][pair % len(names[1])]) for pair in pairs.tolist()]
    return Entries(np.concatenate([np.zeros(0, np.int64), *rows]), places, keys)


@dataclass(frozen=True)
class LiveShard:
    """The live volumes of one embedding shard.

    count: their number. slices: number of live rows in the slices file. rows: their rows in `ledger` (LIVE_COLUMNS).
    """

    count: int
    slices: int
    rows: NDArray[np.int64]
    ledger: pa.Table

    @property
    def volumes(self) -> dict[str, int]:
        """volume_id -> number of its slice vectors; read from the ledger each time."""
        ids, slices = self.ledger["volume_id"], self.ledger["slices"]
        return {ids[row].as_py(): slices[row].as_py() for row in self.rows.tolist()}

    def live_rows(self, file: StoredFile) -> int:
        """Number of live rows in one of the shard's files."""
        return self.count if file.aggregation else self.slices


LiveShards = Mapping[ShardKey, LiveShard]


@dataclass(frozen=True)
class LiveFile:
    """An embedding file. live_rows: number of live rows. only: ids of the live volumes; None if no row is dead."""

    file: StoredFile
    live_rows: int
    only: frozenset[str] | None = None


def live_shards(ledger: pa.Table, recipe: str | None = None) -> dict[ShardKey, LiveShard]:
    """Return the embedding shards in a ledger (LIVE_COLUMNS of it). recipe: digest, to return only its shards."""
    found = entries(ledger["shards"])
    order = np.argsort(found.places, kind="stable")
    rows, counts = found.rows[order], np.bincount(found.places, minlength=len(found.keys))
    slices = ledger["slices"].to_numpy().astype(np.int64)[rows]
    ends = np.cumsum(counts)
    sums = np.diff(np.concatenate([[0], np.cumsum(slices)])[np.concatenate([[0], ends])])
    pieces = np.split(rows, ends[:-1]) if len(ends) else []
    ledger = ledger.select(["volume_id", "slices"])
    live = zip(found.keys, counts.tolist(), sums.tolist(), pieces, strict=True)
    return {key: LiveShard(count, total, own, ledger) for key, count, total, own in live if recipe in (None, key[0])}


def shards_of(ledger: pa.Table, volume_ids: Collection[str]) -> frozenset[ShardKey]:
    """Return the embedding shards with vectors of these volumes (ledger: LIVE_COLUMNS)."""
    import pyarrow.compute as pc

    chosen = pc.is_in(ledger["volume_id"], value_set=pa.array(list(volume_ids), pa.string()))
    return frozenset(entries(ledger["shards"].filter(chosen)).keys)


def live_rows(table: pa.Table, volumes: Container[str]) -> pa.Table:
    """Select the rows of an embedding file that belong to these volumes."""
    ids = table["volume_id"].to_pylist()
    alive = np.fromiter((volume_id in volumes for volume_id in ids), bool, len(ids))
    return table if alive.all() else table.take(pa.array(np.flatnonzero(alive)))


def live_files(files: pa.Table, live: LiveShards, recipe: str, aggregation: str | None) -> list[LiveFile]:
    """Return the embedding files (schemas.FILES) that one index covers, sorted by shard key."""
    members = []
    for file in stored_files(files, EMBEDDING_KINDS, recipe=recipe, aggregation=aggregation):
        shard = live[file.key]
        rows = shard.live_rows(file)
        members.append(LiveFile(file, rows, None if rows == file.rows else frozenset(shard.volumes)))
    return sorted(members, key=lambda member: member.file.key)


def dead_volumes(tombstones: pa.Table) -> dict[str, set[str]]:
    """Map each index shard to the volumes whose rows in it are dead (tombstones: schemas.TOMBSTONES)."""
    dead: dict[str, set[str]] = {}
    for shard, volume_id in zip(tombstones["shard"].to_pylist(), tombstones["volume_id"].to_pylist(), strict=True):
        dead.setdefault(shard, set()).add(volume_id)
    return dead


def searchable_rows(
    store: Location, files: pa.Table, tombstones: pa.Table, recipe: str, aggregation: str | None
) -> int | None:
    """Count the rows of an index that have no tombstone; None if the snapshot has no index files."""
    dead = dead_volumes(tombstones)
    members = stored_files(files, [ROWS_KIND], recipe=recipe, aggregation=aggregation)
    searchable = sum(file.rows for file in members)
    for file in members:
        if volumes := dead.get(file.shard or ""):
            ids = read_rows(store.read(file.path), file.path)["volume_id"]
            searchable -= sum(volume_id in volumes for volume_id in ids.to_pylist())
    return searchable if members else None
