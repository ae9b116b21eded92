"""The names of a store's files and the values of its tables: what medret writes, and so all that it reads or deletes.

A file with another name is not medret's: it is never read and never deleted. Every kind of file that medret writes has
its line in `PATTERNS`; docs/formats.md describes them in words.

Whoever made a store chose every value in its tables, and a checksum vouches for the bytes of a table, not for its
maker. A path that leads out of the store, or to a file of another kind, would be read, and by `medret forget` deleted:
so the tables of a snapshot are checked where they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import pyarrow as pa

from medret.embeddings.parquet import check_required
from medret.schemas import FILES, GONE, LEDGER, TOMBSTONES
from medret.storage import NAME_DIGITS, Location

DIGEST = rf"[0-9a-f]{{{NAME_DIGITS}}}"
RUN = r"\d{8}T\d{6}Z"  # when the run started, UTC
SNAPSHOT = rf"snapshots/{RUN}-{DIGEST}"
SHA256 = re.compile(r"[0-9a-f]{64}")
TABLE_PATH = re.compile(rf"tables/(files|ledger|changes|tombstones)-{DIGEST}\.parquet")

# Kind of file -> pattern of its path below the store. The digest before the suffix is that of the content.
PATTERNS = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "current": "CURRENT",
        "lease": "LEASE",
        "forgetting": "FORGETTING",
        "manifest": rf"{SNAPSHOT}/manifest\.json",
        "table": TABLE_PATH.pattern,
        "embeddings": rf"embeddings/{DIGEST}/(slices|volumes|previews)-{DIGEST}\.parquet",
        "index": rf"indices/{DIGEST}/((hnsw|lsh|exact)-{DIGEST}\.faiss|rows-{DIGEST}\.arrow)",
        "centre": rf"indices/centres/centre-{DIGEST}\.npy",
        "quarantine": rf"quarantine/{RUN}-{DIGEST}\.parquet",
        "report": rf"runs/{RUN}-{DIGEST}\.json",
        "journal": rf"journal/({DIGEST}|quarantine)-{DIGEST}\.parquet",
    }.items()
}
SINGLE = frozenset({"current", "lease", "forgetting"})  # at the top of the store; replaced, so no digest in the name
TEMPORARY = re.compile(r"(?P<folder>(?:.*/)?)\.(?P<name>[^/]+)\.[0-9a-f]{8}\.tmp")
# Files that desktops, NAS boxes and network filesystems leave in folders.
LITTER = re.compile(r"(.*/)?(\.DS_Store|\._[^/]*|\.nfs[0-9a-f]+|Thumbs\.db|desktop\.ini|@eaDir/.+|@eaDir@.*)")


def kind_of(path: str) -> str | None:
    """Return the kind of a medret file; None for every other file, also for temporaries and litter."""
    return next((kind for kind, pattern in PATTERNS.items() if pattern.fullmatch(path)), None)


def is_temporary(path: str) -> bool:
    """Whether a writer of a medret file left this path behind when it was killed."""
    match = TEMPORARY.fullmatch(path)
    return match is not None and kind_of(match["folder"] + match["name"]) is not None


def is_litter(path: str) -> bool:
    """Whether a desktop or a file server left this file, as it does in any folder."""
    return LITTER.fullmatch(path) is not None


def is_deletable(path: str) -> bool:
    """Whether medret may delete the path: one of its temporaries, or one of its files inside a folder."""
    return is_temporary(path) or kind_of(path) not in (None, *SINGLE)


def strangers(paths: Iterable[str]) -> list[str]:
    """Return the files that are neither medret's nor litter."""
    return [path for path in paths if kind_of(path) is None and not is_temporary(path) and not is_litter(path)]


def of_kinds(paths: Iterable[str], *kinds: str) -> list[str]:
    """Return the files of these kinds."""
    return [path for path in paths if kind_of(path) in kinds]


def say_strangers(store: Location, say: Callable[[str], None]) -> None:
    """Say which files are not medret's in a folder that becomes a store."""
    others = strangers(store.files())
    if others:
        say(
            f"{store.uri} holds {len(others)} files that are not medret's, such as {others[0]}; they stay as they are, "
            "and `medret verify` will report them: it is better to give a store its own folder"
        )


# Kind in the table of files -> kind of the path.
NAMED = {
    "slices": "embeddings", "volumes": "embeddings", "previews": "embeddings", "hnsw": "index", "lsh": "index",
    "exact": "index", "rows": "index", "centre": "centre", "quarantine": "quarantine",
}  # fmt: skip
SCHEMAS = {"files": FILES, "ledger": LEDGER, "changes": LEDGER, "journal": LEDGER, "tombstones": TOMBSTONES}
OUTCOMES = frozenset({"embedded", "quarantined"})
COUNT_MAX = 1 << 53


def check_files(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError for a row of FILES whose path is not the name of a medret file of its kind and sha256."""
    for row in rows:
        path, kind, sha256 = row["path"], row["kind"], row["sha256"]
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise ValueError(f"the sha256 of {str(path)[:200]!r} is {str(sha256)[:80]!r}, expected 64 hex digits")
        form = PATTERNS.get(NAMED.get(str(kind), ""))
        named = isinstance(path, str) and form is not None and form.fullmatch(path)
        stem, _, digest = str(path).rpartition("/")[2].partition(".")[0].rpartition("-")
        if not named or digest != sha256[:NAME_DIGITS] or (kind != "quarantine" and stem != kind):
            raise ValueError(f"{str(path)[:200]!r} does not name a file of kind {str(kind)[:80]!r} with that sha256")
        if any(not 0 <= row[name] < COUNT_MAX for name in ("size_bytes", "rows")):
            raise ValueError(f"{path} has {row['size_bytes']} bytes and {row['rows']} rows")
        if kind in NAMED and kind != "quarantine" and not isinstance(row["recipe"], str):
            raise ValueError(f"{path} has no recipe")


def check_table(kind: str, table: pa.Table) -> None:
    """Raise ValueError for a table with values that medret does not write."""
    check_required(table, SCHEMAS[kind])
    if kind == "files":
        check_files(table.to_pylist())
    if SCHEMAS[kind] is LEDGER:
        _check_rows(table, OUTCOMES | {GONE} if kind == "changes" else OUTCOMES)
    if kind in ("ledger", "changes"):
        _check_order(table["volume_id"])


def _check_rows(table: pa.Table, outcomes: AbstractSet[str]) -> None:
    """Check those columns of LEDGER that the table has."""
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    for name in ("size_bytes", "slices"):
        if name in table.schema.names and table.num_rows:
            bounds = pc.min_max(table[name]).as_py()
            if bounds["min"] < 0 or bounds["max"] >= COUNT_MAX:
                raise ValueError(f"column {name} holds {bounds['min']} to {bounds['max']}")
    if "status" in table.schema.names and (others := {*table["status"].unique().to_pylist()} - outcomes):
        raise ValueError(f"column status holds {min(others)[:80]!r}")


def _check_order(ids: pa.ChunkedArray) -> None:
    """Check that each id is greater than the one before."""
    import pyarrow.compute as pc

    rises = pc.less(ids.slice(0, max(0, len(ids) - 1)), ids.slice(1))
    if not pc.all(rises, min_count=0).as_py():
        after = ids[pc.index(rises, False).as_py()].as_py()
        raise ValueError(f"the volume ids are not in order, or not unique, after {after[:200]!r}")
