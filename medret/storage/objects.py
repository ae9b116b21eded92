"""One object behind a URI: its bytes, and the identity that tells whether another has taken its place.

Local files cannot hold up a run. A FIFO, a socket or a device is opened without waiting, and then refused. A mount that
stops answering is given up after a while: the waiting thread stays behind, the run goes on.
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

from medret.storage.filesystems import open_filesystem, reaching, with_retries
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


Result = TypeVar("Result")
Beat = Callable[[], None]

# Longer than an NFS client waits before it asks again (three minutes by default), and than tapes are mounted for a
# recall; shorter than a night.
STALL_S = 300.0
STALL_AGAIN_S = 10.0  # while an earlier read of this process still waits: most likely for the same mount
PIECE_BYTES = 8 << 20

_waiting: set[threading.Thread] = set()


class StalledError(OSError):
    """A file gave no byte for so long that it was given up."""


class NotAFileError(OSError):
    """What was opened is a FIFO, a socket or a device."""


def patiently(operation: Callable[[Beat], Result], name: str) -> Result:
    """What `operation` gives, or StalledError when it shows no sign of life for `STALL_S`.

    operation: runs in a thread of its own and calls the function that it gets whenever it makes progress. name: what it
    works on, for the message.
    """
    said: queue.SimpleQueue[tuple[Result | None, BaseException | None] | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            said.put((operation(lambda: said.put(None)), None))
        except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
            said.put((None, error))
        finally:
            _waiting.discard(thread)

    thread = threading.Thread(target=work, daemon=True, name=f"reading {name}")
    limit_s = STALL_AGAIN_S if _waiting else STALL_S
    thread.start()
    while True:
        try:
            found = said.get(timeout=limit_s)
        except queue.Empty:
            _waiting.add(thread)
            raise StalledError(
                errno.ETIMEDOUT, f"nothing came for {limit_s:g} s; is the mount it lies on alive?", name
            ) from None
        if found is not None:
            result, error = found
            if error is not None:
                raise error
            return result  # type: ignore[return-value]  # without an error it is the result


def read_file(path: str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes `start` to `end` (default: all) of a regular file; raises OSError."""
    return patiently(lambda beat: _read(path, start, end, beat), path)


def each_piece(path: str, operation: Callable[[bytes], object]) -> None:
    """Call `operation` with the bytes of a regular file, piece by piece; raises OSError."""

    def pieces(beat: Beat) -> None:
        with _opened(path) as file:
            while piece := file.read(PIECE_BYTES):
                operation(piece)
                beat()

    patiently(pieces, path)


def _read(path: str, start: int, end: int | None, beat: Beat) -> bytes:
    content = io.BytesIO()  # gives its own memory away at the end: nothing is held twice
    with _opened(path) as file:
        file.seek(start)
        left = PIECE_BYTES if end is None else end - start
        while piece := file.read(min(left, PIECE_BYTES)):
            content.write(piece)
            left -= len(piece) if end is not None else 0
            beat()
    return content.getvalue()


def _opened(path: str) -> io.FileIO:
    """A regular file, opened without waiting for whoever might write into it."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return io.FileIO(file)
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise NotAFileError(errno.EINVAL, "it is no regular file, but a FIFO, a socket or a device", path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed onto it at the end: readers see the old file or all of the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # it was renamed, or never made
            temporary.unlink()


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a local file that appears whole, or not at all, also after a crash."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
