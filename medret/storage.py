"""Bytes in and out of any fsspec store: whole objects, atomic writes, content-addressed names.

Every file that medret writes (CURRENT excepted) carries the first 16 hex digits of its sha256 in its name. A
retried task that writes the same content writes the same file, and a reader can check what it opens.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from medret.errors import CorruptError, StorageError, UsageError

NAME_DIGITS = 16


@dataclass(frozen=True)
class WrittenFile:
    """A file in a store. path: below the store's root."""

    path: str
    sha256: str
    size_bytes: int


# Missing credentials and unreachable endpoints come as these libraries' own exceptions, which are no OSErrors.
_STORE_LIBRARIES = frozenset({"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure"})


def is_store_failure(error: Exception) -> bool:
    """True for what a user can put right (path, access, network), False for a fault of the program."""
    return isinstance(error, OSError | ValueError) or type(error).__module__.partition(".")[0] in _STORE_LIBRARIES


@contextmanager
def _reaching(uri: str, deed: str) -> Iterator[None]:
    """Turn a store's failures, whatever its library calls them, into StorageError; FileNotFoundError stays."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not is_store_failure(error):
            raise
        raise StorageError(
            f"{uri} cannot be {deed}: {error}; check the address, the credentials, the network and the free space"
        ) from error


class Location:
    """A folder in an object store or on disk: a filesystem and a root path."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = normalise_uri(uri)
        try:
            self.fs, root = fsspec.core.url_to_fs(self.uri)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{self.uri}: cannot be opened as a location: {error}") from error
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Location], tuple[str]]:
        return Location, (self.uri,)

    def path(self, relative: str) -> str:
        """The filesystem's own path of `relative`."""
        return f"{self.root}/{relative}" if relative else self.root

    def uri_of(self, relative: str) -> str:
        """The URI of `relative`, as a user would write it."""
        return f"{self.uri}/{relative}" if relative else self.uri

    def local_path(self, relative: str) -> Path | None:
        """A path on this machine's disk, or None when the location is remote."""
        return Path(self.path(relative)) if self.is_local else None

    def exists(self, relative: str) -> bool:
        """Whether an object of that name is there now (never answered from a listing cache)."""
        with _reaching(self.uri_of(relative), "read"):
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.path(relative)))

    def read(self, relative: str) -> bytes:
        """The whole object; raises FileNotFoundError, StorageError."""
        with _reaching(self.uri_of(relative), "read"):
            data: bytes = self.fs.cat_file(self.path(relative))
            return data

    def write(self, relative: str, data: bytes) -> None:
        """Write one object so that a reader sees the old bytes or the new ones, never a part; raises StorageError."""
        with _reaching(self.uri_of(relative), "written"):
            self._write(relative, data)

    def _write(self, relative: str, data: bytes) -> None:
        if not self.is_local:  # one PUT is atomic in S3, GCS and Azure
            self.fs.pipe_file(self.path(relative), data)
            return
        target = Path(self.path(relative))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def write_named(self, folder: str, stem: str, suffix: str, data: bytes) -> WrittenFile:
        """Write `folder/stem-<sha256[:16]>suffix`; the name checks the content."""
        sha256 = hashlib.sha256(data).hexdigest()
        relative = f"{folder}/{stem}-{sha256[:NAME_DIGITS]}{suffix}"
        self.write(relative, data)
        return WrittenFile(relative, sha256, len(data))

    def files(self, folder: str = "") -> list[str]:
        """Paths (below this location) of all files below `folder`, sorted; an absent folder has none."""
        try:
            with _reaching(self.uri_of(folder), "listed"):
                self.fs.invalidate_cache()
                found = self.fs.find(self.path(folder))
        except FileNotFoundError:
            return []
        return sorted(path[len(self.root) + 1 :] for path in map(str, found))


def read_checked(location: Location, relative: str, sha256: str) -> bytes:
    """The object's bytes; raises CorruptError unless they have that sha256."""
    try:
        data = location.read(relative)
    except FileNotFoundError as error:
        raise CorruptError(
            f"{location.uri_of(relative)} is missing: restore it, or index again into a new store"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorruptError(
            f"{location.uri_of(relative)} is damaged: sha256 is {found[:NAME_DIGITS]}.., expected "
            f"{sha256[:NAME_DIGITS]}..; restore it, or index again into a new store"
        )
    return data


def normalise_uri(uri: str | os.PathLike[str]) -> str:
    """An absolute path for a local location, the URI without a trailing slash for any other."""
    text = os.fspath(uri)
    if not text:
        raise UsageError("an empty path was given where a folder or URI is expected")
    scheme = urlsplit(text).scheme
    if scheme in ("", "file") or len(scheme) == 1:  # one letter: a Windows drive
        text = text.removeprefix("file://")
        return os.path.abspath(os.path.expanduser(text))
    return text.rstrip("/")


def read_uri(uri: str, **options: Any) -> bytes:
    """The whole object behind a URI or local path; raises FileNotFoundError or OSError."""
    fs, path = fsspec.core.url_to_fs(uri, **options)
    data: bytes = fs.cat_file(path)
    return data
