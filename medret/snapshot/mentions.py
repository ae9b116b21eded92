"""Find where a store names volumes: in text, in bytes and in the columns of tables.

A name is found in every spelling that medret's files use (UTF-8, and the escapes of JSON and URIs), with one exception:
inside the longer name of a volume that stays (`b/a.nii.gz` contains `a.nii.gz`).

The name of a DICOM series is that of a folder, and may be a word that means something else, too, such as `CT` or `12`.
A path such as `p1/ct` is found where it stands alone, a single word only within its URI.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medret.embeddings.parquet import PLAIN, read_parquet
from medret.errors import CorruptError, NotFoundError, StorageError, UsageError
from medret.index import read_rows
from medret.snapshot.names import kind_of, of_kinds
from medret.storage import Location

FORGOTTEN = "(forgotten)"
IDENTITY = ("volume_id", "uri")  # columns that say which volume a row belongs to
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, CorruptError)  # errors of reading a damaged table
CHUNK_BYTES = 16 * 2**20
FILE = re.compile(r"\.(nii|nii\.gz|zip|tar|tgz|tar\.gz)\Z", re.IGNORECASE)  # ends the names of volumes that are objects


class Mentions:
    """Finds the names of some volumes, and removes them. stay: ids of others. archives: URIs of their archives."""

    def __init__(self, ids: AbstractSet[str], stay: Iterable[str], archives: Iterable[str] = ()) -> None:
        longer = {other for other in stay if other not in ids and any(volume_id in other for volume_id in ids)}
        roots = [uri.rstrip("/") for uri in archives]
        names = {name for volume_id in ids for name in _names(volume_id, roots)}
        others = longer | {f"{root}/{other}" for other in longer for root in roots}
        self.ids = ids
        self._forgotten = frozenset(text for name in names for text in _spellings(name))
        words = self._forgotten | {text for other in others for text in _spellings(other)}
        pattern = "|".join(map(_alone, sorted(words, key=len, reverse=True))) or r"(?!)"
        self._text = re.compile(pattern)
        self._bytes = re.compile(pattern.encode("utf-8", "surrogateescape"))
        self._raw = frozenset(_encoded(word) for word in self._forgotten)
        self._longest = max((len(_encoded(word)) for word in words), default=0) + 1  # what follows tells, too

    def scrub(self, text: str) -> str:
        """Replace the names in the text."""
        return self._text.sub(lambda match: FORGOTTEN if match[0] in self._forgotten else match[0], text)

    def in_text(self, text: str) -> bool:
        """Whether the text holds a name."""
        return any(match[0] in self._forgotten for match in self._text.finditer(text))

    def in_bytes(self, data: bytes, begin: int = 0, end: int | None = None) -> bool:
        """Whether a name begins at `begin` or after it, and before `end`."""
        if not any(raw in data for raw in self._raw):
            return False
        last = len(data) if end is None else end
        starts = (match.start() for match in self._bytes.finditer(data) if match[0] in self._raw)
        return any(begin <= start < last for start in starts)

    def in_table(self, table: pa.Table) -> bool:
        """Whether a text column or the schema's metadata holds a name."""
        metadata = table.schema.metadata or {}
        if any(self.in_bytes(item) for pair in metadata.items() for item in pair):
            return True
        return any(self._in_array(array) for column in table.columns for array in _texts(column))

    def scrub_table(self, table: pa.Table) -> pa.Table:
        """Replace the names in the columns that may mention other volumes: reasons, labels, facts."""
        for place, field in enumerate(table.schema):
            column = table.column(place)
            if field.name not in IDENTITY and any(self._in_array(array) for array in _texts(column)):
                values = [self._scrub_value(value) for value in column.to_pylist()]
                table = table.set_column(place, field, pa.array(values, field.type))
        return table

    def in_file(self, store: Location, path: str) -> bool:
        """Whether a file or its path holds a name; raises StorageError if the file cannot be read."""
        if self.in_text(path):
            return True
        try:
            kind = kind_of(path)
            if kind is None:
                return self._in_stranger(store, path)
            data = store.read(path)
            table = read_table(path, data)
        except FileNotFoundError:
            return False
        except UNREADABLE:
            table = None
        return self.in_bytes(data) or (table is not None and self.in_table(table))

    def _in_stranger(self, store: Location, path: str) -> bool:
        """Search a file of any format and size."""
        local = store.local_path(path)
        if local is None:
            return self.in_bytes(store.read(path))
        if not local.is_file():  # reading a pipe would wait, reading a device would never end
            return False
        try:
            return any(self.in_bytes(*part) for part in _parts(local, self._longest))
        except OSError as error:
            raise StorageError(f"{local} cannot be read: {error}") from error

    def _in_array(self, array: pa.Array) -> bool:
        """Whether an array of strings holds a name."""
        for word in self._forgotten:
            texts = array.filter(pc.match_substring(array, word))
            if any(self.in_text(text) for text in texts.unique().to_pylist()):
                return True
        return False

    def _scrub_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.scrub(value)
        if isinstance(value, list):  # a map
            return [(self._scrub_value(key), self._scrub_value(item)) for key, item in value]
        return value


def require_mentioned(store: Location, volume_ids: AbstractSet[str]) -> frozenset[str]:
    """Return the ids; raise NotFoundError if no table, report or manifest mentions one of them."""
    for volume_id in sorted(volume_ids - ids_of(store, frozenset(map(digest, volume_ids)))):
        mentions = Mentions({volume_id}, ())
        texts = of_kinds(store.files(), "report", "manifest")
        if not any(mentions.in_file(store, path) for path in texts):
            raise NotFoundError(
                f"{store.uri} knows no volume '{volume_id}'; the id of a volume is its path below the archive"
            )
    return frozenset(volume_ids)


def ids_of(store: Location, digests: AbstractSet[str]) -> frozenset[str]:
    """Find the ids with these digests in the tables of the store."""
    ids: set[str] = set()
    for kinds in (("table", "journal", "quarantine"), ("embeddings", "index")):
        if len(ids) < len(digests):
            listed = {volume_id for path in of_kinds(store.files(), *kinds) for volume_id in _ids_in(store, path)}
            ids |= {volume_id for volume_id in listed if digest(volume_id) in digests}
    return frozenset(ids)


def _ids_in(store: Location, path: str) -> Iterable[str]:
    """Read the volume ids of a medret table; none if it cannot be read."""
    if path.endswith(".faiss"):
        return ()
    try:
        table = read_table(path, store.read(path))
    except UNREADABLE:
        return ()
    ids = table["volume_id"].unique().to_pylist() if table and "volume_id" in table.schema.names else []
    return (volume_id for volume_id in ids if isinstance(volume_id, str))


def with_copies(store: Location, ids: frozenset[str], *, copies: bool) -> frozenset[str]:
    """Add the volumes with the same content; raise UsageError if there are any and `copies` is not set."""
    rows = set(ledger_rows(store)) if ids else set()
    content = {sha256 for volume_id, sha256 in rows if volume_id in ids and sha256}
    same = {volume_id for volume_id, sha256 in rows if sha256 in content} - ids
    if same and not copies:
        raise UsageError(
            f"{len(same)} other volumes have the same content and so the same vectors, such as '{min(same)}'; name "
            "them too, or add --copies"
        )
    return ids | same


def ledger_rows(store: Location) -> Iterator[tuple[str, str | None]]:
    """Yield volume_id and content_sha256 of every readable row in ledgers and the journal."""
    for path in of_kinds(store.files(), "table", "journal"):
        if path.startswith(("journal/", "tables/ledger-", "tables/changes-")):
            try:
                table = read_parquet(store.read(path), ["volume_id", "content_sha256"])
            except UNREADABLE:
                continue
            yield from zip(table["volume_id"].to_pylist(), table["content_sha256"].to_pylist(), strict=True)


def files_naming(store: Location, mentions: Mentions, doomed: set[str]) -> Iterator[str]:
    """Search all files that stay for the names; yield those that hold one or cannot be read."""
    for path in store.files():
        if path not in doomed:
            try:
                if mentions.in_file(store, path):
                    yield path
            except StorageError:
                yield path
            except CorruptError:  # a link to a place outside the store
                continue


def digest(volume_id: str) -> str:
    """Return the sha256 that stands for an id in FORGETTING."""
    return hashlib.sha256(volume_id.encode("utf-8", "surrogateescape")).hexdigest()


def read_table(path: str, data: bytes) -> pa.Table | None:
    """Read a medret table without its vectors and pictures; None if the file is not a table.

    Raises UNREADABLE if it is damaged.
    """
    if path.endswith(".arrow"):
        return read_rows(data, path)
    if not path.endswith(".parquet"):
        return None
    names = pq.read_schema(pa.BufferReader(data)).names
    return read_parquet(data, [name for name in names if name not in PLAIN], name=path)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names(volume_id: str, archives: Iterable[str]) -> Iterator[str]:
    """What names a volume wherever it stands: its id, or only its URIs if the id may mean something else."""
    if FILE.search(volume_id) or "/" in volume_id:
        yield volume_id
    else:
        yield from (f"{archive}/{volume_id}" for archive in archives)


def _alone(word: str) -> str:
    """A pattern for a name; of a folder only where no longer name goes on."""
    escaped = re.escape(word)
    return escaped if FILE.search(word) else rf"(?<![\w.-]){escaped}(?![\w-])"


def _spellings(volume_id: str) -> frozenset[str]:
    escaped = {json.dumps(volume_id)[1:-1], json.dumps(volume_id, ensure_ascii=False)[1:-1]}
    return frozenset({volume_id, quote(_encoded(volume_id)), *escaped})


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _texts(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """Iterate over the string arrays of a column: its chunks, or the keys and items of a map."""
    for chunk in column.chunks:
        if pa.types.is_map(chunk.type):
            yield from (part for part in (chunk.keys, chunk.items) if is_text(part.type))
        elif is_text(chunk.type):
            yield chunk


def _parts(path: Path, longest: int) -> Iterator[tuple[bytes, int, int]]:
    """Read a file in overlapping parts; with each part, yield the range in which a match counts as starting there.

    The ranges cover every position of the file once. longest: bytes of the longest name; around its range, each part
    holds that many bytes more on both sides.
    """
    with path.open("rb") as file:
        data, begin = file.read(CHUNK_BYTES), 0
        while more := file.read(CHUNK_BYTES):
            end = max(begin, len(data) - longest)
            yield data, begin, end
            first = max(0, end - longest)
            data, begin = data[first:] + more, end - first
        yield data, begin, len(data)
