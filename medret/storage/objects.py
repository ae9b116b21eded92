"""One object behind a URI: its bytes, and the identity that tells whether another has taken its place.

Local files cannot hold up a run. A FIFO, a socket or a device is opened without waiting, and then refused. A mount that
stops answering is given up after a while: the waiting thread stays behind, the run goes on.
The cache folder of this machine holds copies of model weights and of the files of remote stores.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import queue
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from medret.errors import UsageError
from medret.storage.filesystems import cat, open_filesystem, reaching, with_retries
from medret.storage.uris import plain_path, scheme_of

Result = TypeVar("Result")
Beat = Callable[[], None]  # reports progress

# Longer than an NFS client waits before it asks again (three minutes by default) and than it takes to mount a tape;
# shorter than a night.
STALL_S = 300.0
STALL_AGAIN_S = 10.0  # while an earlier read of this process still waits, most likely for the same mount
CHUNK_BYTES = 8 << 20
CACHE_VARIABLE = "MEDRET_CACHE"

_waiting: set[threading.Thread] = set()


@dataclass(frozen=True)
class Identity:
    """What tells one version of an object from another. etag: without quotes, if the store has one. mtime: ISO, UTC."""

    size_bytes: int
    etag: str | None
    mtime: str | None

    def is_same(self, earlier: Identity) -> bool:
        """Compare size and etag, or size and time without an etag: some stores later drop the fractions of a time."""
        same = self.etag == earlier.etag if self.etag else self.mtime == earlier.mtime
        return same and self.size_bytes == earlier.size_bytes


@dataclass(frozen=True)
class StoredObject:
    """One object. uri: used literally, without patterns. Methods raise whatever its filesystem's library raises."""

    uri: str

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's disks and mounts, which are read without fsspec."""
        return not scheme_of(self.uri)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.uri)

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """Read all bytes, or those from `start` to `end` that exist."""
        if self.is_local:
            return with_retries(lambda: read_file(plain_path(self.uri), start or 0, end))
        fs, path = self._opened
        return cat(fs, path, start, end)

    def sha256(self) -> str:
        """The sha256 of all bytes, read in chunks: an object of any size needs little memory."""
        return with_retries(self._sha256)

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        if self.is_local:
            for_each_chunk(plain_path(self.uri), digest.update)
            return digest.hexdigest()
        fs, path = self._opened
        with fs.open(path, "rb", block_size=CHUNK_BYTES, cache_type="readahead") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def identity(self) -> Identity:
        """Ask the store now; an earlier listing is never used. Raises IsADirectoryError for a folder."""
        if self.is_local:
            status = with_retries(lambda: with_stall_limit(lambda _: Path(plain_path(self.uri)).stat(), self.uri))
            if stat.S_ISDIR(status.st_mode):
                raise _is_folder(self.uri)
            return identity_of({"size": status.st_size, "mtime": status.st_mtime})
        fs, path = self._opened
        fs.invalidate_cache(fs._parent(path))  # noqa: SLF001
        detail = with_retries(lambda: fs.info(path))
        if detail.get("type") == "directory":
            raise _is_folder(self.uri)
        return identity_of(detail)


def _is_folder(path: str) -> IsADirectoryError:
    return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def read_uri(uri: str) -> bytes:
    """Read the whole object behind a URI or local path; raises FileNotFoundError, UsageError, StorageError."""
    with reaching(uri, "read"):
        return StoredObject(uri).read()


def folder_entries(uri: str) -> dict[str, Identity]:
    """The objects directly in a folder: name -> identity. It has none if there is no such folder, or if it is a file.

    A link to nothing has the size 0. Raises whatever the folder's filesystem library raises.
    """
    if not scheme_of(uri):
        path = plain_path(uri)
        try:
            return with_retries(lambda: with_stall_limit(lambda beat: _entries(path, beat), path))
        except (FileNotFoundError, NotADirectoryError):
            return {}
    fs, path = open_filesystem(uri)
    fs.invalidate_cache(path)
    try:
        listed = with_retries(lambda: fs.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    below = f"{path.rstrip('/')}/"
    files = {
        detail["name"].removeprefix(below): detail
        for detail in listed
        if detail["type"] == "file" and detail["name"].startswith(below) and detail["name"] != below
    }
    return {name: identity_of(detail) for name, detail in files.items()}


def _entries(folder: str, beat: Beat) -> dict[str, Identity]:
    found = {}
    with os.scandir(folder) as scanned:
        for entry in scanned:
            beat()
            try:
                status = entry.stat()
            except OSError:  # a link to nothing: reported when it is read
                found[entry.name] = Identity(0, None, None)
                continue
            if stat.S_ISREG(status.st_mode):
                found[entry.name] = identity_of({"size": status.st_size, "mtime": status.st_mtime})
    return found


def identity_of(detail: Mapping[str, Any]) -> Identity:
    """The identity in an entry of an fsspec listing."""
    return Identity(int(detail.get("size") or 0), _etag(detail), _mtime(detail))


def _etag(detail: Mapping[str, Any]) -> str | None:
    etag = detail.get("ETag") or detail.get("etag")
    return str(etag).strip('"') if etag else None


def _mtime(detail: Mapping[str, Any]) -> str | None:
    """The time of the last change; each store has its own name for it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = detail.get(name)
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.astimezone(UTC).isoformat(timespec="microseconds")
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return datetime.fromtimestamp(value, UTC).isoformat(timespec="microseconds")
            except (
                ValueError,
                OverflowError,
                OSError,
            ):  # a year outside the calendar, which still tells versions apart
                return f"@{value!r}"
        if isinstance(value, str) and value:
            return value
    return None


class StalledError(OSError):
    """A file returned no byte for so long that medret gave up on it."""


class NotAFileError(OSError):
    """The opened path is a FIFO, a socket or a device."""


def with_stall_limit(operation: Callable[[Beat], Result], name: str) -> Result:
    """Call `operation` in its own thread; raise StalledError when it makes no progress for `STALL_S`.

    operation: takes a function, which it must call whenever it makes progress. name: its file or folder, for the
    message.
    """
    # None reports progress, a pair is the result or the error.
    reports: queue.SimpleQueue[tuple[Result | None, BaseException | None] | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            reports.put((operation(lambda: reports.put(None)), None))
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            reports.put((None, error))
        finally:
            _waiting.discard(thread)

    thread = threading.Thread(target=work, daemon=True, name=f"reading {name}")
    limit_s = STALL_AGAIN_S if _waiting else STALL_S
    thread.start()
    while True:
        try:
            report = reports.get(timeout=limit_s)
        except queue.Empty:
            _waiting.add(thread)
            raise StalledError(
                errno.ETIMEDOUT, f"nothing came for {limit_s:g} s; does its mount still answer?", name
            ) from None
        if report is not None:
            result, error = report
            if error is not None:
                raise error
            return result  # type: ignore[return-value]  # without an error it is the result


def read_file(path: str, start: int = 0, end: int | None = None) -> bytes:
    """Read bytes `start` to `end` (default: all) of a regular file; raises OSError."""
    return with_stall_limit(lambda beat: _read(path, start, end, beat), path)


def for_each_chunk(path: str, operation: Callable[[bytes], object]) -> None:
    """Call `operation` with each chunk of a regular file, in order; raises OSError."""

    def read_chunks(beat: Beat) -> None:
        with _opened(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                operation(chunk)
                beat()

    with_stall_limit(read_chunks, path)


def _read(path: str, start: int, end: int | None, beat: Beat) -> bytes:
    content = io.BytesIO()  # getvalue() hands over its memory without a copy
    with _opened(path) as file:
        file.seek(start)
        left = CHUNK_BYTES if end is None else end - start
        while chunk := file.read(min(left, CHUNK_BYTES)):
            content.write(chunk)
            left -= len(chunk) if end is not None else 0
            beat()
    return content.getvalue()


def _opened(path: str) -> io.FileIO:
    """Open a regular file, without waiting for a writer to a FIFO."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return io.FileIO(file)
    os.close(file)
    if stat.S_ISDIR(mode):
        raise _is_folder(path)
    raise NotAFileError(errno.EINVAL, "it is not a regular file, but a FIFO, a socket or a device", path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, renamed onto `path` at the end: readers see the old file or the complete new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a local file that appears whole or not at all, even after a crash."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def default_cache_dir() -> Path:
    """`$MEDRET_CACHE`, or `~/.cache/medret`; raises UsageError when there is no home folder either."""
    configured = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(configured).expanduser() if configured else Path.home() / ".cache" / "medret"
    except RuntimeError as error:
        raise UsageError(
            f"there is no home folder for a cache: set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
