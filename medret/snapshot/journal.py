"""The journal: what an unfinished run has already made durable.

After a group of volumes is embedded and its Parquet files lie in the store, one small file says so:
`journal/<shard key>-<sha256[:16]>.parquet` holds their ledger rows and, in its schema's metadata, the rows of FILES. A
later run takes what still fits the archive and makes only the rest. Publishing ends it, but for the work of runs that
were asked for other vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from medret.embeddings.parquet import as_corrupt, read_parquet
from medret.embeddings.shards import parquet_bytes
from medret.errors import CorruptError
from medret.schemas import FILES, LEDGER
from medret.snapshot.names import check_table, own
from medret.storage import NAME_DIGITS, Location

FOLDER = "journal"
REQUESTS = 16  # at a time
FILES_KEY = b"medret.files"


@dataclass(frozen=True)
class Journal:
    """What the journal of a store says.

    ledger: schemas.LEDGER. files: schemas.FILES. paths: of readable entries. entries: path and ledger rows of each.
    """

    ledger: pa.Table
    files: pa.Table
    paths: tuple[str, ...]
    entries: tuple[tuple[str, pa.Table], ...] = ()


def write_entry(store: Location, shard: str, ledger: pa.Table, files: pa.Table) -> None:
    """Add a group. Its vectors must lie in the store already."""
    listed = json.dumps(files.to_pylist()).encode()
    table = ledger.cast(LEDGER).replace_schema_metadata({FILES_KEY: listed})
    store.write_content_addressed(FOLDER, shard, ".parquet", parquet_bytes(table))


def read_journal(store: Location) -> Journal:
    """Everything that unfinished runs left. A damaged entry counts as not written: its volumes are made again."""
    paths, entries, files = journal_paths(store), [], [FILES.empty_table()]
    with ThreadPoolExecutor(REQUESTS) as pool:
        for path, entry in zip(paths, pool.map(lambda path: read_entry(store, path), paths), strict=True):
            if entry is not None:
                entries.append((path, entry[0]))
                files.append(entry[1])
    ledger = pa.concat_tables([LEDGER.empty_table(), *(rows for _, rows in entries)])
    return Journal(ledger, pa.concat_tables(files), tuple(path for path, _ in entries), tuple(entries))


def clear_journal(store: Location, keep: Collection[str] = ()) -> None:
    """Remove the entries that say nothing more than a published snapshot, or are of no use any more: all but `keep`."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(store.delete, (path for path in journal_paths(store) if path not in keep)))


def journal_paths(store: Location) -> list[str]:
    """Its entries, those too that cannot be read; other files in its folder are none."""
    return own(store.files(FOLDER), "journal")


def read_entry(store: Location, path: str) -> tuple[pa.Table, pa.Table] | None:
    """Ledger and files of one entry; None if it is damaged or gone."""
    try:
        data = store.read(path)
        if not is_named_after(path, data):
            return None
        table = read_parquet(data, name=path, fields=list(LEDGER))
        with as_corrupt(path):
            files = pa.Table.from_pylist(json.loads((table.schema.metadata or {})[FILES_KEY]), schema=FILES)
            ledger = table.replace_schema_metadata(None).cast(LEDGER)
            check_table("files", files)
            check_table("ledger", ledger)
        return ledger, files
    except (FileNotFoundError, CorruptError):
        return None


def is_named_after(path: str, data: bytes) -> bool:
    """Whether a file's name carries its content's sha256."""
    return path.rpartition(".")[0].endswith(f"-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}")
