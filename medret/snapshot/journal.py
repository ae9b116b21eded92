"""The journal: work that an unfinished run has already stored.

When a group of volumes is embedded and its Parquet files are in the store, one small file says so:
`journal/<shard key>-<sha256[:16]>.parquet` holds their ledger rows and, in its schema's metadata, the rows of FILES. A
later run reuses the volumes that still match the archive and embeds only the rest. Publishing clears the journal,
except for the work of runs with other recipes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from medret.embeddings.parquet import as_corrupt, parquet_bytes, read_parquet
from medret.errors import CorruptError
from medret.schemas import FILES, LEDGER
from medret.snapshot.names import check_table, of_kinds
from medret.storage import NAME_DIGITS, Location

FOLDER = "journal"
REQUESTS = 16  # at the same time
FILES_KEY = b"medret.files"


@dataclass(frozen=True)
class Journal:
    """The readable entries of a store's journal.

    ledger: all their rows, schemas.LEDGER. files: schemas.FILES. entries: path and ledger rows of each.
    """

    ledger: pa.Table
    files: pa.Table
    paths: tuple[str, ...]
    entries: tuple[tuple[str, pa.Table], ...] = ()


def write_entry(store: Location, shard: str, ledger: pa.Table, files: pa.Table) -> None:
    """Add the entry of a group of volumes. Their vectors must already be in the store."""
    listed = json.dumps(files.to_pylist()).encode()
    table = ledger.cast(LEDGER).replace_schema_metadata({FILES_KEY: listed})
    store.write_content_addressed(FOLDER, shard, ".parquet", parquet_bytes(table))


def read_journal(store: Location) -> Journal:
    """Read what unfinished runs left. A damaged entry counts as not written: its volumes are embedded again."""
    paths, entries, files = journal_paths(store), [], [FILES.empty_table()]
    with ThreadPoolExecutor(REQUESTS) as pool:
        for path, entry in zip(paths, pool.map(lambda path: read_entry(store, path), paths), strict=True):
            if entry is not None:
                entries.append((path, entry[0]))
                files.append(entry[1])
    ledger = pa.concat_tables([LEDGER.empty_table(), *(rows for _, rows in entries)])
    return Journal(ledger, pa.concat_tables(files), tuple(path for path, _ in entries), tuple(entries))


def clear_journal(store: Location, keep: Collection[str] = ()) -> None:
    """Remove all entries except `keep`: a published snapshot holds the same, or no run can use them any more."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(store.delete, (path for path in journal_paths(store) if path not in keep)))


def journal_paths(store: Location) -> list[str]:
    """Return the paths of all entries, also of damaged ones; other files in the folder do not count."""
    return of_kinds(store.files(FOLDER), "journal")


def read_entry(store: Location, path: str) -> tuple[pa.Table, pa.Table] | None:
    """Read the ledger and files of one entry; None if it is damaged or was removed."""
    try:
        data = store.read(path)
        if not is_named_after(path, data):
            return None
        table = read_parquet(data, name=path, fields=list(LEDGER))
        with as_corrupt(path):
            files = pa.Table.from_pylist(json.loads((table.schema.metadata or {})[FILES_KEY]), schema=FILES)
            ledger = table.replace_schema_metadata(None).cast(LEDGER)
            check_table("files", files)
            check_table("journal", ledger)
        return ledger, files
    except (FileNotFoundError, CorruptError):
        return None


def is_named_after(path: str, data: bytes) -> bool:
    """Whether a file's name ends in the sha256 of its content."""
    return path.rpartition(".")[0].endswith(f"-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}")
