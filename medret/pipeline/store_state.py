"""What the store holds before a run - live snapshot, journal, older snapshots - and what it must hold afterwards.

Its tables are queried by DuckDB: in memory, without files and without extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.archive import label_origins
from medret.errors import MedretError, VersionError
from medret.schemas import FILES, LEDGER, PART_ROWS, TOMBSTONES, VOLUME_LABELS, taken
from medret.snapshot import (
    Journal,
    Manifest,
    current_id,
    ledger_parts,
    read_files,
    read_journal,
    read_manifest,
    read_tombstones,
)
from medret.snapshot.files import entries
from medret.storage import Location

# The columns of a ledger that a plan needs. The others are read for the rows that are written again. The modality is
# the one that the reader was given: null if the volume's own tags told it.
PLANNED = (
    "volume_id", "size_bytes", "etag", "mtime", "content_sha256", "status", "code", "modality", "slices", "shards",
    "judged_by",
)  # fmt: skip
CODED = pa.dictionary(pa.int32(), pa.string())  # texts with few different values
TYPES = {"status": CODED, "code": CODED, "modality": CODED, "judged_by": CODED, "shards": pa.map_(CODED, CODED)}
KNOWN = pa.schema(
    [
        *(pa.field(name, TYPES.get(name, LEDGER.field(name).type)) for name in PLANNED),
        pa.field("labels", pa.uint64()),  # digest of the labels that are not from tags; null: it has none
        pa.field("ct_without_hu", pa.bool_()),  # of its facts
        pa.field("found", CODED),  # names of the labels in its tags (label_origins.names_of)
    ]
)

Rows = Callable[..., pa.Table]  # (numbers, names of columns or all) -> rows of StoreState.rows, whole, in this order

DIGESTS = """
    SELECT CASE WHEN coalesce(subject, modality, body_region, organ) IS NOT NULL OR cardinality(metadata) > 0
        THEN hash(subject, modality, body_region, organ, coalesce(metadata, MAP {}), coalesce(origins, MAP {}))
        END AS labels
    FROM labelled ORDER BY place
"""

# An empty temp_directory means that nothing is ever written to disk.
CONFIG: dict[str, Any] = {
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


@dataclass(frozen=True)
class BaseSnapshot:
    """The live snapshot before this run. For a new store, id and manifest are None and the tables are empty.

    ledger: KNOWN.
    """

    id: str | None
    manifest: Manifest | None
    ledger: pa.Table
    files: pa.Table
    tombstones: pa.Table


@dataclass(frozen=True)
class StoreState:
    """The ledger rows that the store holds.

    rows: KNOWN; those of the live snapshot by volume_id, then, from row `journal_from` on, those of the journal, then,
    from row `older_from` on, those of older snapshots. others: the rows from `journal_from` on, whole (schemas.LEDGER).
    """

    rows: pa.Table
    journal_from: int
    older_from: int
    others: pa.Table

    def stored(self, recipes: Collection[str]) -> NDArray[np.int64]:
        """The recipes (digests) that each row has vectors of: bit i is that of the i-th."""
        bits = np.zeros(self.rows.num_rows, np.int64)
        for at in range(0, len(bits), PART_ROWS):
            found = entries(self.rows["shards"].slice(at, PART_ROWS))
            for bit, recipe in enumerate(recipes):
                of_recipe = np.array([key[0] == recipe for key in found.keys], np.bool_)
                bits[at + found.rows[of_recipe[found.places]]] |= 1 << bit
        return bits

    def numbered(self, *names: str) -> pa.Table:
        """Columns of the rows, and their numbers as the column `row`."""
        numbers = pa.array(np.arange(self.rows.num_rows, dtype=np.int32))
        return self.rows.select(names).append_column("row", numbers)


@dataclass(frozen=True)
class Target:
    """What the new snapshot must contain.

    recipes: digests. ruleset_digest: digest of all that decides whether a volume is quarantined.
    retry: try every quarantined volume again. copies: whether equal content gives equal vectors under another name
    (false if the slices are drawn by a generator seeded with the name). hidden: names of labels that tags do not give.
    """

    recipes: tuple[str, ...]
    ruleset_digest: str
    retry: bool = False
    copies: bool = True
    hidden: frozenset[str] = frozenset()


def live_manifest(store: Location) -> Manifest | None:
    """Read the manifest of the live snapshot; None for a new store."""
    live = current_id(store)
    return None if live is None else read_manifest(store, live)


def listed_before(store: Location) -> pa.Table:
    """The volumes of the live snapshot and of unfinished runs, with identities and codes, as `list_archive` takes them.

    A run that found out that a folder holds several series may have published nothing.
    """
    live, names = current_id(store), ["volume_id", "size_bytes", "etag", "mtime", "code"]
    parts = [] if live is None else ledger_parts(store, live, read_manifest(store, live), names)
    return pa.concat_tables([LEDGER.empty_table().select(names), *parts, read_journal(store).ledger.select(names)])


def read_base(store: Location) -> BaseSnapshot:
    """Read the live snapshot. Raises VersionError if another medret wrote it, CorruptError if it is damaged."""
    live = current_id(store)
    if live is None:
        return BaseSnapshot(None, None, KNOWN.empty_table(), FILES.empty_table(), TOMBSTONES.empty_table())
    manifest = read_manifest(store, live)
    files, parts = read_files(store, live, manifest), [KNOWN.empty_table()]
    for part in ledger_parts(store, live, manifest):
        if part.schema.names != LEDGER.names or files.schema.names != FILES.names:
            raise VersionError(
                f"{store.uri}: the tables of snapshot {live} have other columns than this version of medret writes "
                f"({manifest.medret_version}); index into a new store"
            )
        parts.append(known_rows(part))
    tombstones = read_tombstones(store, live, manifest)
    return BaseSnapshot(live, manifest, pa.concat_tables(parts), files.cast(FILES), tombstones)


def store_state(base: BaseSnapshot, journal: Journal, older: pa.Table | None = None) -> StoreState:
    """Put the rows of all three together. older: rows of older snapshots (schemas.LEDGER)."""
    others = pa.concat_tables([journal.ledger, LEDGER.empty_table() if older is None else older])
    rows = pa.concat_tables([base.ledger, known_rows(others)])
    return StoreState(rows, base.ledger.num_rows, base.ledger.num_rows + journal.ledger.num_rows, others)


def known_rows(ledger: pa.Table) -> pa.Table:
    """The columns KNOWN of a part of a ledger (schemas.LEDGER)."""
    names = label_origins.names_of(ledger["found"])
    labels = label_origins.own(ledger.select(VOLUME_LABELS.names), names)
    planned = (labels["modality"] if name == "modality" else ledger[name] for name in PLANNED)
    columns = [*planned, _digests(labels), without_hu(ledger["facts"]), names]
    return pa.table([column.cast(f.type) for column, f in zip(columns, KNOWN, strict=True)], schema=KNOWN)


def without_hu(facts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether the facts are of a volume labelled CT that holds no Hounsfield units (medret.volume.read.VolumeFacts)."""
    return pc.fill_null(pc.match_substring_regex(facts, r'"ct_without_hu":\s*true'), False)


def with_digests(labels: pa.Table) -> pa.Table:
    """Labels (schemas.VOLUME_LABELS), and a column `labels` with their digest; null: no label."""
    return labels.append_column(KNOWN.field("labels"), _digests(labels))


def _digests(table: pa.Table) -> pa.ChunkedArray:
    places = pa.array(np.arange(table.num_rows, dtype=np.int32))
    return query(DIGESTS, {"labelled": table.select(VOLUME_LABELS.names[1:]).append_column("place", places)})["labels"]


def stored_rows(store: Location, base: BaseSnapshot, state: StoreState) -> Rows:
    """Return a function that reads rows whole."""

    def rows(numbers: NDArray[np.int64], names: Sequence[str] = LEDGER.names) -> pa.Table:
        wanted, places = np.unique(numbers, return_inverse=True)
        live, at = wanted[wanted < state.journal_from], 0
        parts = [LEDGER.empty_table().select(names)]
        if len(live):
            assert base.id is not None
            assert base.manifest is not None
            for part in ledger_parts(
                store, base.id, base.manifest, list(names)
            ):  # a large ledger need not fit into memory
                first, last = np.searchsorted(live, (at, at + part.num_rows))
                parts.append(rows_of(part, live[first:last] - at))
                at += part.num_rows
        parts.append(rows_of(state.others.select(names), wanted[len(live) :] - state.journal_from))
        return taken(pa.concat_tables(parts), pa.array(places))

    return rows


def picked(table: pa.Table, numbers: NDArray[np.int64]) -> pa.Table:
    """Take rows by number, in any order, without joining the parts of a large table; a run of rows is not copied."""
    if len(numbers) and (np.diff(numbers) == 1).all():
        return table.slice(numbers[0], len(numbers))
    wanted, places = np.unique(numbers, return_inverse=True)
    return taken(rows_of(table, wanted), pa.array(places))


def rows_of(table: pa.Table, numbers: NDArray[np.int64]) -> pa.Table:
    """Select rows by number, in ascending order, without joining the parts of a large table."""
    if not len(numbers):
        return table.slice(0, 0)
    first, last = int(numbers.min()), int(numbers.max()) + 1
    chosen = np.zeros(last - first, np.bool_)
    chosen[numbers - first] = True
    return table.slice(first, last - first).filter(pa.array(chosen))


def numbered(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Equal values, and nulls, as equal numbers from 0 on."""
    # Joined first: the dictionary of each chunk holds those of all before it.
    joined = pa.table([column], ["values"]).combine_chunks()["values"]
    codes = joined.dictionary_encode().unify_dictionaries().combine_chunks()
    numbers: NDArray[np.int64] = codes.indices.fill_null(len(codes.dictionary)).to_numpy().astype(np.int64)
    return numbers


def groups(*columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of each row, from 0 on, and its size; rows are in one group if they are equal in all columns."""
    group = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, number = np.unique(column, return_inverse=True)
        _, group = np.unique(group * (number.max(initial=0) + 1) + number, return_inverse=True)
    return group, np.bincount(group)[group] if len(group) else group


def unfinished_elsewhere(
    journal: Journal, objects: pa.Table, recipes: Collection[str], ruleset_digest: str
) -> frozenset[str]:
    """Paths of the journal entries that a run with other recipes or rules can still use.

    objects: schemas.OBJECTS. recipes, ruleset_digest: digests of this run (see `Target`). An entry is useless to
    every run if its objects have changed since.
    """
    if not journal.entries:
        return frozenset()
    listed = objects.filter(pc.is_in(objects["volume_id"], value_set=journal.ledger["volume_id"])).to_pylist()
    identities = {item["volume_id"]: (item["size_bytes"], item["etag"], item["mtime"]) for item in listed}

    def is_useful(row: Mapping[str, Any]) -> bool:
        if identities.get(row["volume_id"]) != (row["size_bytes"], row["etag"], row["mtime"]):
            return False
        if row["status"] == "embedded":
            return any(recipe not in recipes for recipe, _ in row["shards"])
        return bool(row["judged_by"] != ruleset_digest)

    names = ["volume_id", "size_bytes", "etag", "mtime", "status", "shards", "judged_by"]
    return frozenset(path for path, rows in journal.entries if any(map(is_useful, rows.select(names).to_pylist())))


def query(text: str, tables: dict[str, pa.Table], **parameters: Any) -> pa.Table:
    """Run a query over these tables, by name. parameters: values of the `$name` in its text.

    Raises MedretError if the memory of this machine is too small for it.
    """
    import duckdb  # only where a query runs, not in every worker

    with _database().cursor() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        try:
            return connection.sql(text, params=parameters or None).to_arrow_table()
        except duckdb.OutOfMemoryException as error:
            raise MedretError(
                f"planning the run needs more memory than there is here: {str(error).splitlines()[0]}; start it where "
                "the driver has more (docs/scale.md says how much a volume takes), or split the archive"
            ) from error


@cache
def _database() -> Any:
    import duckdb

    return duckdb.connect(config=CONFIG)


def release() -> None:
    """Return to the system what the queries so far have taken from it: their database keeps it."""
    _database().close()
    _database.cache_clear()
