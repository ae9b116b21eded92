"""What the tables of a snapshot say, checked where they are read: whoever made a store chose every value in them.

A checksum vouches for the bytes of a table, not for its maker. A path that leads out of the store, or to a file of
another kind, would be read, and by `medret forget` deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from medret.embeddings.parquet import check_required
from medret.schemas import FILES, LEDGER, TOMBSTONES
from medret.snapshot.names import OWN, SHA256
from medret.storage import NAME_DIGITS

# Kind in the table of files -> that of its name.
NAMED = {
    "slices": "embeddings", "volumes": "embeddings", "hnsw": "index", "lsh": "index", "exact": "index", "rows": "index",
    "centre": "centre", "quarantine": "quarantine",
}  # fmt: skip
SCHEMAS = {"files": FILES, "ledger": LEDGER, "tombstones": TOMBSTONES}
COUNT_MAX = 1 << 53


def check_files(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError for a row of FILES that names anything but a file of medret, by its own full name."""
    for row in rows:
        path, kind, sha256 = row["path"], row["kind"], row["sha256"]
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise ValueError(f"the sha256 of {str(path)[:200]!r} is {str(sha256)[:80]!r}, expected 64 hex digits")
        form = OWN.get(NAMED.get(str(kind), ""))
        named = isinstance(path, str) and form is not None and form.fullmatch(path)
        stem, _, digest = str(path).rpartition("/")[2].partition(".")[0].rpartition("-")
        if not named or digest != sha256[:NAME_DIGITS] or (kind != "quarantine" and stem != kind):
            raise ValueError(f"{str(path)[:200]!r} is no name of a file of kind {str(kind)[:80]!r} with that sha256")
        if any(not 0 <= row[name] < COUNT_MAX for name in ("size_bytes", "rows")):
            raise ValueError(f"{path} has {row['size_bytes']} bytes and {row['rows']} rows")
        if kind in NAMED and kind != "quarantine" and not isinstance(row["recipe"], str):
            raise ValueError(f"{path} has no recipe")


def check_table(kind: str, table: pa.Table) -> None:
    """Raise ValueError for a table whose values medret would not write."""
    check_required(table, SCHEMAS[kind])
    if kind == "files":
        check_files(table.to_pylist())
    for name in ("size_bytes", "slices"):
        if kind == "ledger" and name in table.schema.names and table.num_rows:
            values = table[name].to_pylist()
            if min(values) < 0 or max(values) >= COUNT_MAX:
                raise ValueError(f"column {name} holds {min(values)} to {max(values)}")
