"""Stores that somebody forged: any file changed, and every checksum above it made to fit again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from medret.embeddings.parquet import parquet_bytes, read_parquet
from medret.storage import Location


def forge_manifest(
    store: Location, change: Callable[[dict[str, Any]], Any], tables: Mapping[str, bytes] | None = None
) -> str:
    """Change the live manifest and make it live; change: gets the JSON, changes it or returns bytes to write instead.

    tables: further tables, by name. Returns the new snapshot's id.
    """
    live = store.read("CURRENT").decode().strip()
    content = json.loads(store.read(f"snapshots/{live}/manifest.json"))
    made = change(content)
    data = made if isinstance(made, bytes) else json.dumps(content, indent=1).encode()
    forged = f"{live[:16]}-{hashlib.sha256(data).hexdigest()[:16]}"
    for name, table in (tables or {}).items():
        store.write(f"tables/{name}", table)
    store.write(f"snapshots/{forged}/manifest.json", data)
    store.write("CURRENT", f"{forged}\n".encode())
    return forged


def forge_table(store: Location, kind: str, change: Callable[[pa.Table], pa.Table | bytes]) -> str:
    """Change the first table of a kind (files, ledger, changes, tombstones); returns the new snapshot's id."""
    live = store.read("CURRENT").decode().strip()
    listed = json.loads(store.read(f"snapshots/{live}/manifest.json"))["tables"]
    made = change(read_parquet(store.read(next(table["path"] for table in listed if table["kind"] == kind))))
    data = made if isinstance(made, bytes) else parquet_bytes(made)
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{kind}-{sha256[:16]}.parquet"

    def swap(content: dict[str, Any]) -> None:
        entry = next(table for table in content["tables"] if table["kind"] == kind)
        rows = entry["rows"] if isinstance(made, bytes) else made.num_rows
        entry.update(path=f"tables/{name}", sha256=sha256, size_bytes=len(data), rows=rows)

    return forge_manifest(store, swap, {name: data})


def forge_rows(store: Location, kind: str, change: Callable[[list[dict[str, Any]]], Any]) -> str:
    """Change the rows of a table as dictionaries; returns the new snapshot's id."""

    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        change(rows)
        return pa.Table.from_pylist(rows, schema=table.schema)

    return forge_table(store, kind, changed)


def forge_file(store: Location, kind: str, change: Callable[[bytes], bytes], aggregation: str | None = "mean") -> str:
    """Change the first file of a kind that FILES lists (exact, hnsw, lsh, rows, centre, slices, volumes)."""

    def swap(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["kind"] == kind and row["aggregation"] == aggregation)
        data = change(store.read(row["path"]))
        folder, _, name = row["path"].rpartition("/")
        suffix = "." + name.rpartition(".")[2]
        written = store.write_content_addressed(folder, kind, suffix, data)
        row.update(path=written.path, sha256=written.sha256, size_bytes=written.size_bytes)

    return forge_rows(store, "files", swap)
