"""A folder in an object store or on disk, where medret writes all its files.

The name of every file except CURRENT carries the first 16 hex digits of its sha256. A retried task that writes the same
content writes the same file, and a reader can check what it opens.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from medret.errors import CorruptError, NotFoundError
from medret.storage.filesystems import cat, in_words, open_filesystem, reaching, tree, with_retries
from medret.storage.objects import read_file, write_atomically
from medret.storage.s3 import CONDITIONAL, S3Store, is_folder, s3_pages
from medret.storage.uris import add_options, check_relative, given_options, normalise_uri, refuse_secrets, scheme_of

NAME_DIGITS = 16
LOCK = ".lock"  # of a store on disk; always empty


@dataclass(frozen=True)
class WrittenFile:
    """A file in a store. path: below the store's root."""

    path: str
    sha256: str
    size_bytes: int


class Location:
    """A folder in an object store or on disk: a filesystem and a root path.

    Files on disk are read without fsspec, whose import takes longer than a search. Raises UsageError for a URI that is
    not understood or carries a credential, UnreachableError if opening the filesystem needs a server that fails.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = normalise_uri(uri)
        refuse_secrets(self.uri, "location")
        self.is_local = not scheme_of(self.uri)
        self.root = (self.uri if self.is_local else self._opened[1]).rstrip("/")

    @property
    def fs(self) -> Any:
        """The fsspec filesystem."""
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.uri, given_options())

    def path(self, relative: str) -> str:
        """The filesystem's own path of `relative`; raises CorruptError if it does not stay below the root."""
        return f"{self.root}/{check_relative(relative)}" if relative else self.root

    def uri_of(self, relative: str) -> str:
        """The URI of `relative`, as a user would write it."""
        return f"{self.uri}/{relative}" if relative else self.uri

    def local_path(self, relative: str) -> Path | None:
        """A path on this machine's disk, or None if the location is remote.

        Raises CorruptError if it leaves the root through a link, by which the store's maker could choose what is read.
        """
        if not self.is_local:
            return None
        path = self.path(relative)
        self._check_inside(path)
        return Path(path)

    def _check_inside(self, path: str) -> None:
        real = os.path.realpath(path)
        if real != self._real_root and not real.startswith(f"{self._real_root}/"):
            raise CorruptError(
                f"{path} is a link, or lies below one, that leads out of {self.uri} to {real}; medret does not follow "
                "such links: put the file itself there"
            )

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root or "/").rstrip("/")

    def exists(self, relative: str) -> bool:
        """Whether the object exists now (never answered from a listing cache)."""
        with reaching(self.uri_of(relative), "read"):
            self.fs.invalidate_cache()
            return bool(with_retries(lambda: self.fs.exists(self.path(relative))))

    def read(self, relative: str, at_most_bytes: int | None = None) -> bytes:
        """Read the object; raises FileNotFoundError, StorageError, and CorruptError if it is larger than allowed."""
        end = None if at_most_bytes is None else at_most_bytes + 1
        data: bytes
        with reaching(self.uri_of(relative), "read"):
            if (local := self.local_path(relative)) is not None:
                data = read_file(str(local), end=end)
            else:
                data = cat(self.fs, self.path(relative), None, end)
        if at_most_bytes is not None and len(data) > at_most_bytes:
            raise CorruptError(f"{self.uri_of(relative)} is larger than the expected {at_most_bytes} bytes")
        return data

    def download(self, relative: str, to: Path) -> None:
        """Copy one object to a file of this machine; raises FileNotFoundError, StorageError."""
        with reaching(self.uri_of(relative), "copied"):
            with_retries(lambda: self.fs.get_file(self.path(relative), str(to)))

    def write(self, relative: str, data: bytes) -> None:
        """Write one object. Readers see the old bytes or the new ones, never a part. Raises StorageError."""
        with self._writing(relative):
            self._write(relative, data)

    @contextmanager
    def _writing(self, relative: str) -> Iterator[None]:
        try:
            with reaching(self.uri_of(relative), "written"):
                yield
        except FileNotFoundError as error:  # object stores create folders, but not buckets
            raise NotFoundError(f"{self.uri} cannot be written to: {in_words(error)}; create it first") from error

    def _write(self, relative: str, data: bytes) -> None:
        if not self.is_local:  # one PUT is atomic in S3, GCS and Azure
            with_retries(lambda: self.fs.pipe_file(self.path(relative), data))
            return
        target = Path(self.path(relative))
        self._check_inside(str(target.parent))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)

    def write_content_addressed(self, folder: str, stem: str, suffix: str, data: bytes) -> WrittenFile:
        """Write `folder/stem-<sha256[:16]>suffix`; the name checks the content."""
        sha256 = hashlib.sha256(data).hexdigest()
        relative = f"{folder}/{stem}-{sha256[:NAME_DIGITS]}{suffix}"
        self.write(relative, data)
        return WrittenFile(relative, sha256, len(data))

    def files(self, folder: str = "") -> list[str]:
        """Paths below this location of all files in `folder`, sorted; none if there is no such folder.

        The files that keep writers apart are left out: they are not content.
        """
        return sorted(path for path in self.details(folder) if path not in (LOCK, CONDITIONAL))

    def details(self, folder: str = "") -> dict[str, dict[str, Any]]:
        """fsspec's details of all files below `folder`, by path below this location ("" if the location is a file)."""
        return {path: detail for page in self.pages(folder) for path, detail in page.items()}

    def pages(self, folder: str = "") -> Iterator[dict[str, dict[str, Any]]]:
        """Like `details`, in parts and in any order: all at once may take more memory than there is."""
        below = f"{self.root}/"
        pages = s3_pages if "s3" in _protocols(self.fs) else _one_page
        begun = False
        try:
            with reaching(self.uri_of(folder), "listed"):
                for files in pages(self.fs, self.path(folder)):
                    yield {
                        path[len(below) :]: detail
                        for path, detail in files.items()
                        if path == self.root or (path.startswith(below) and not is_folder(path, detail["size"]))
                    }
                    begun = True
        except FileNotFoundError as error:
            if begun:
                raise NotFoundError(f"{self.uri_of(folder)} vanished while it was listed; run again") from error

    def modified_at(self, relative: str) -> datetime:
        """The time of the object's last change; raises FileNotFoundError, StorageError."""
        with reaching(self.uri_of(relative), "read"):
            moment: datetime = with_retries(lambda: self.fs.modified(self.path(relative)))
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    def size_bytes(self, relative: str) -> int:
        """The object's size; raises FileNotFoundError, StorageError."""
        with reaching(self.uri_of(relative), "read"):
            return int(with_retries(lambda: self.fs.size(self.path(relative))) or 0)

    def delete(self, relative: str) -> None:
        """Remove one object, if it exists. A link is removed itself, not its target."""
        with reaching(self.uri_of(relative), "deleted"), suppress(FileNotFoundError):
            path = self.path(relative)
            if not self.is_local:
                with_retries(lambda: self.fs.rm_file(path))
                return
            self._check_inside(str(Path(path).parent))
            Path(path).unlink()
            self._drop_empty(Path(path).parent)

    def _drop_empty(self, folder: Path) -> None:
        """Remove an empty folder, and those above it that become empty: object stores have no empty folders."""
        with suppress(OSError):  # it is not empty, or another thread removed it
            while folder != Path(self.root):
                folder.rmdir()
                folder = folder.parent

    def compare_and_swap(self, relative: str, expected: bytes | None, new: bytes) -> bool:
        """Write a small object only if it still holds `expected` (None: does not exist); return whether it was written.

        One atomic step on disk (under a lock file) and on S3 (a conditional PUT). Elsewhere a comparison followed by a
        write, in which two writers in the same second could both succeed.
        """
        with self._writing(relative):
            if self.is_local:
                with self._locked():
                    return self._swap_compared(relative, expected, new)
            if "s3" in _protocols(self.fs):
                return S3Store(self.fs, self.root, self.uri).compare_and_swap(relative, expected, new)
            return self._swap_compared(relative, expected, new)

    def _swap_compared(self, relative: str, expected: bytes | None, new: bytes) -> bool:
        if self._read_or_none(relative) != expected:
            return False
        self._write(relative, new)
        return True

    def _read_or_none(self, relative: str) -> bytes | None:
        self.fs.invalidate_cache()
        try:
            return self.read(relative)
        except FileNotFoundError:
            return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        Path(self.root).mkdir(parents=True, exist_ok=True)
        file = os.open(self.path(LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing releases it, also when the process is killed
            yield
        finally:
            os.close(file)


def _received(uri: str, options: dict[str, dict[str, Any]]) -> Location:
    """A location that came from another process, with the storage options in use there."""
    add_options(options)
    return Location(uri)


def read_checked(location: Location, relative: str, sha256: str, size_bytes: int | None = None) -> bytes:
    """Read an object; raises CorruptError unless it has this sha256 and at most size_bytes."""
    try:
        data = location.read(relative, size_bytes)
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


def _one_page(fs: Any, root: str) -> Iterator[dict[str, dict[str, Any]]]:
    yield tree(fs, root)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
