"""One object behind a URI: its bytes, and by what it is told apart from another in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from medret.retry import with_retries
from medret.storage.local import PIECE_BYTES, each_piece, patiently, read_file
from medret.storage.reaching import open_filesystem, reaching
from medret.storage.uris import plain_path, scheme_of


@dataclass(frozen=True)
class Identity:
    """By what an object is known again. etag: without quotes, where the store has one. mtime: ISO 8601 in UTC."""

    size_bytes: int
    etag: str | None
    mtime: str | None

    def is_same(self, before: Identity) -> bool:
        """By the etag where there is one: some stores list times with fractions that they do not give later."""
        same = self.etag == before.etag if self.etag else self.mtime == before.mtime
        return same and self.size_bytes == before.size_bytes


@dataclass(frozen=True)
class StoredObject:
    """One object. uri: taken as it stands, whatever letters are in it.

    What is done with it may raise anything that its filesystem's library raises.
    """

    uri: str

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's disks and mounts, which are read without fsspec."""
        return not scheme_of(self.uri)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.uri)

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """All bytes, or those from `start` to `end`, as far as there are any."""
        if self.is_local:
            return with_retries(lambda: read_file(plain_path(self.uri), start or 0, end))
        fs, path = self._opened
        data: bytes = with_retries(lambda: fs.cat_file(path, start=start, end=end))
        return data

    def sha256(self) -> str:
        """Of all bytes, read in pieces: an object of any size needs little memory."""
        return with_retries(self._sha256)

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        if self.is_local:
            each_piece(plain_path(self.uri), digest.update)
            return digest.hexdigest()
        fs, path = self._opened
        with fs.open(path, "rb", block_size=PIECE_BYTES, cache_type="readahead") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def identity(self) -> Identity:
        """What the store says now, never what it said when it was listed."""
        if self.is_local:
            status = with_retries(lambda: patiently(lambda _: Path(plain_path(self.uri)).stat(), self.uri))
            return identity_of({"size": status.st_size, "mtime": status.st_mtime})
        fs, path = self._opened
        fs.invalidate_cache(fs._parent(path))  # noqa: SLF001
        return identity_of(with_retries(lambda: fs.info(path)))


def read_uri(uri: str) -> bytes:
    """The whole object behind a URI or local path; raises FileNotFoundError, UsageError, StorageError."""
    with reaching(uri, "read"):
        return StoredObject(uri).read()


def identity_of(detail: Mapping[str, Any]) -> Identity:
    """What an fsspec listing says of an object."""
    return Identity(int(detail.get("size") or 0), _etag(detail), _mtime(detail))


def _etag(detail: Mapping[str, Any]) -> str | None:
    etag = detail.get("ETag") or detail.get("etag")
    return str(etag).strip('"') if etag else None


def _mtime(detail: Mapping[str, Any]) -> str | None:
    """The time of the last change, under the names that stores give it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = detail.get(name)
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.astimezone(UTC).isoformat(timespec="microseconds")
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return datetime.fromtimestamp(value, UTC).isoformat(timespec="microseconds")
            except (ValueError, OverflowError, OSError):  # years that no calendar has: damaged, and still a time
                return f"@{value!r}"
        if isinstance(value, str) and value:
            return value
    return None
