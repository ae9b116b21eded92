"""Stores that somebody forged: any file changed, and every checksum above it made to fit again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from medret.embeddings.shards import parquet_bytes, read_parquet
from medret.storage import Location


def forge_manifest(store: Location, change: Callable[[dict[str, Any]], Any]) -> str:
    """Change the live manifest and make it live; change: gets the JSON, changes it or returns bytes to write instead.

    Returns the new snapshot's id.
    """
    live = store.read("CURRENT").decode().strip()
    content = json.loads(store.read(f"snapshots/{live}/manifest.json"))
    made = change(content)
    data = made if isinstance(made, bytes) else json.dumps(content, indent=1).encode()
    forged = f"{live[:16]}-{hashlib.sha256(data).hexdigest()[:16]}"
    for table in content["tables"]:
        path = f"snapshots/{live}/{table['path']}"
        if store.exists(path):
            store.write(f"snapshots/{forged}/{table['path']}", store.read(path))
    store.write(f"snapshots/{forged}/manifest.json", data)
    store.write("CURRENT", f"{forged}\n".encode())
    return forged


def forge_table(store: Location, kind: str, change: Callable[[pa.Table], pa.Table | bytes]) -> str:
    """Change the first table of a kind (files, ledger, tombstones); returns the new snapshot's id."""

    def swap(content: dict[str, Any]) -> None:
        live = store.read("CURRENT").decode().strip()
        entry = next(table for table in content["tables"] if table["kind"] == kind)
        made = change(read_parquet(store.read(f"snapshots/{live}/{entry['path']}")))
        data = made if isinstance(made, bytes) else parquet_bytes(made)
        sha256 = hashlib.sha256(data).hexdigest()
        entry.update(path=f"{kind}-{sha256[:16]}.parquet", sha256=sha256, size_bytes=len(data))
        entry["rows"] = entry["rows"] if isinstance(made, bytes) else made.num_rows
        store.write(f"snapshots/{live}/{entry['path']}", data)

    return forge_manifest(store, swap)


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
        written = store.write_named(folder, kind, suffix, data)
        row.update(path=written.path, sha256=written.sha256, size_bytes=written.size_bytes)

    return forge_rows(store, "files", swap)
