"""Bytes in and out of any fsspec store: whole objects, atomic writes, content-addressed names.

Every file that medret writes (CURRENT excepted) carries the first 16 hex digits of its sha256 in its name. A
retried task that writes the same content writes the same file, and a reader can check what it opens.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medret.errors import CorruptError, StorageError, UsageError
from medret.retry import options_of, retrying

NAME_DIGITS = 16
CHAINED = re.compile("://|::")  # in what is not a plain path
LOCK = ".lock"  # of a store on disk; always empty
_CONDITION_FAILED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})


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
    """A folder in an object store or on disk: a filesystem and a root path.

    On disk it is read without fsspec, whose import takes longer than a search.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = normalise_uri(uri)
        self.is_local = not CHAINED.search(self.uri)
        self.root = self.uri.rstrip("/") if self.is_local else self._opened[1].rstrip("/")

    @property
    def fs(self) -> Any:
        """The fsspec filesystem."""
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        try:
            return open_filesystem(self.uri)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{self.uri}: cannot be opened as a location: {error}") from error

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
            return bool(retrying(lambda: self.fs.exists(self.path(relative))))

    def read(self, relative: str) -> bytes:
        """The whole object; raises FileNotFoundError, StorageError."""
        with _reaching(self.uri_of(relative), "read"):
            if (local := self.local_path(relative)) is not None:
                return local.read_bytes()
            data: bytes = retrying(lambda: self.fs.cat_file(self.path(relative)))
            return data

    def write(self, relative: str, data: bytes) -> None:
        """Write one object so that a reader sees the old bytes or the new ones, never a part; raises StorageError."""
        with _reaching(self.uri_of(relative), "written"):
            self._write(relative, data)

    def _write(self, relative: str, data: bytes) -> None:
        if not self.is_local:  # one PUT is atomic in S3, GCS and Azure
            retrying(lambda: self.fs.pipe_file(self.path(relative), data))
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
                found = retrying(lambda: self.fs.find(self.path(folder)))
        except FileNotFoundError:
            return []
        paths = (path[len(self.root) + 1 :] for path in map(str, found))
        return sorted(path for path in paths if path != LOCK)

    def changed_at(self, relative: str) -> datetime:
        """When the object was written; raises FileNotFoundError, StorageError."""
        with _reaching(self.uri_of(relative), "read"):
            moment: datetime = retrying(lambda: self.fs.modified(self.path(relative)))
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    def delete(self, relative: str) -> None:
        """Remove one object; one that is not there is as good as removed."""
        with _reaching(self.uri_of(relative), "deleted"), suppress(FileNotFoundError):
            retrying(lambda: self.fs.rm_file(self.path(relative)))
            if (local := self.local_path(relative)) is not None:
                self._drop_empty(local.parent)

    def _drop_empty(self, folder: Path) -> None:
        """Remove a folder that holds nothing any more, and those above it: an object store has no empty folders."""
        with suppress(OSError):  # something is in it, or another thread was faster
            while folder != Path(self.root):
                folder.rmdir()
                folder = folder.parent

    def swap(self, relative: str, expected: bytes | None, new: bytes) -> bool:
        """Write a small object only if it still holds `expected` (None: is not there); whether it was written.

        One atomic step on disk (under a lock file) and on S3 (a conditional PUT). Elsewhere it is a comparison followed
        by a write, which two writers of the same second could both pass.
        """
        with _reaching(self.uri_of(relative), "written"):
            if self.is_local:
                with self._locked():
                    return self._swap_compared(relative, expected, new)
            if "s3" in _protocols(self.fs):
                return self._swap_s3(relative, expected, new)
            return self._swap_compared(relative, expected, new)

    def _swap_compared(self, relative: str, expected: bytes | None, new: bytes) -> bool:
        if self._held(relative) != expected:
            return False
        self._write(relative, new)
        return True

    def _held(self, relative: str) -> bytes | None:
        self.fs.invalidate_cache()
        try:
            data: bytes = retrying(lambda: self.fs.cat_file(self.path(relative)))
        except FileNotFoundError:
            return None
        return data

    def _swap_s3(self, relative: str, expected: bytes | None, new: bytes) -> bool:
        condition: dict[str, str] = {"IfNoneMatch": "*"}
        if expected is not None:
            try:
                # The tag is asked for before the bytes: if they change in between, the condition fails.
                self.fs.invalidate_cache()
                tag = retrying(lambda: self.fs.info(self.path(relative), refresh=True))["ETag"]
            except FileNotFoundError:
                return False
            condition = {"IfMatch": tag}
        if self._held(relative) != expected:
            return False
        bucket, key, _ = self.fs.split_path(self.path(relative))
        try:
            retrying(lambda: self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=new, **condition))
        except OSError as error:
            response = getattr(error.__cause__, "response", None) or {}
            if str(response.get("Error", {}).get("Code")) not in _CONDITION_FAILED:
                raise
            # A repeated request may have met its own first attempt, which did write.
            return self._held(relative) == new
        self.fs.invalidate_cache()
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        Path(self.root).mkdir(parents=True, exist_ok=True)
        with Path(self.path(LOCK)).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go of by closing, also by a process that is killed
            yield


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


def read_uri(uri: str) -> bytes:
    """The whole object behind a URI or local path; raises FileNotFoundError or OSError."""
    if not CHAINED.search(uri):
        return Path(uri).read_bytes()  # without fsspec, as in `Location`
    fs, path = open_filesystem(uri)
    data: bytes = retrying(lambda: fs.cat_file(path))
    return data


def open_filesystem(uri: str, **options: Any) -> tuple[Any, str]:
    """The filesystem of a URI, set to repeat requests that fail for a moment, and its own path."""
    import fsspec

    protocol = urlsplit(uri).scheme
    fs, path = fsspec.core.url_to_fs(uri, **{**options_of(protocol), **options})
    return fs, str(path)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
