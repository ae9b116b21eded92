"""Files of a store on this machine, checked before anything else reads them.

Files of a local store are used in place; those of any other store are copied to the cache once:

    <cache>/files/<sha256>      copies, named by their content
    <cache>/moved/<digest>      exact vectors of index shards, seen from the centre of several stores (`basis.py`)
    <cache>/checked/<digest>    empty stamps: a file with this path, size and times had this sha256 and passed its check

An unchanged file is hashed, and its content checked, once per cache. Writing to a file changes its times, so its stamp
no longer fits and it is hashed again. Other users of this machine may not be allowed to read the store, so the folders
of the cache have mode 0700 and its files 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from medret.errors import CorruptError, StorageError
from medret.snapshot.names import SHA256
from medret.storage import NAME_DIGITS, Location
from medret.storage.objects import CACHE_VARIABLE, default_cache_dir, for_each_chunk, replacing

FOLDER_MODE, FILE_MODE = 0o700, 0o600

Judge = Callable[[Path], None]


def no_judge(path: Path) -> None:
    """Check nothing: for files that are checked whenever they are read."""


class LocalFiles:
    """The files of one store as paths on this machine."""

    def __init__(self, store: Location, cache: Path | None = None) -> None:
        self._store = store
        self._cache = cache or default_cache_dir()

    def path(self, relative: str, sha256: str, judge: Judge = no_judge) -> Path:
        """The local path of a file of the store, checked against its sha256; raises CorruptError, which names the file.

        judge: checks the content before anything else reads it; raises CorruptError.
        """
        name = self._store.uri_of(relative)
        if not SHA256.fullmatch(sha256):  # it becomes the name of a file here
            raise CorruptError(f"{name}: its sha256 is given as {sha256[:80]!r}, expected 64 hex digits")
        local = self._store.local_path(relative)
        if local is not None:
            self._check(local, sha256, name, judge)
            return local
        copy = self._cache / "files" / sha256
        if _exists(copy):
            with contextlib.suppress(CorruptError):  # a damaged copy is replaced by a new download
                self._check(copy, sha256, str(copy), judge)
                return copy
        self._download(relative, copy, sha256, name)
        judge(copy)
        self._stamp(self._stamp_path(copy, sha256, judge))
        return copy

    def derived(self, key: str, make: Callable[[Path], None]) -> Path:
        """A file that `make` writes to the path it is given, unless it exists. key: hex digits over its content."""
        path = self._cache / "moved" / key
        if _exists(path) and _exists(self._stamp_path(path, key, no_judge)):
            return path
        try:
            private_folder(path.parent)
            with replacing(path) as temporary:
                temporary.touch(FILE_MODE)
                make(temporary)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error}; set {CACHE_VARIABLE} to a folder with room for it"
            ) from error
        self._stamp(self._stamp_path(path, key, no_judge))
        return path

    def _download(self, relative: str, copy: Path, sha256: str, name: str) -> None:
        try:
            private_folder(copy.parent)
            with replacing(copy) as temporary:
                temporary.touch(FILE_MODE)
                self._store.download(relative, temporary)
                _compare(_sha256(temporary), sha256, name)
                temporary.chmod(FILE_MODE)
        except FileNotFoundError as error:
            raise _missing(name) from error
        except StorageError as error:
            cure = f"if {copy.parent} is full, set {CACHE_VARIABLE} to a folder with room"
            raise type(error)(f"{error}; {cure}") from error
        except OSError as error:
            raise StorageError(
                f"{name} cannot be copied to {copy.parent}: {error}; set {CACHE_VARIABLE} to a folder with room for it"
            ) from error

    def _check(self, path: Path, sha256: str, name: str, judge: Judge) -> None:
        try:
            stamp = self._stamp_path(path, sha256, judge)
            if _exists(stamp):
                return
            _compare(_sha256(path), sha256, name)
            judge(path)
        except FileNotFoundError as error:
            raise _missing(name) from error
        except OSError as error:
            raise StorageError(f"{name} cannot be read: {error}") from error
        self._stamp(stamp)

    def _stamp_path(self, path: Path, sha256: str, judge: Judge) -> Path:
        """The stamp of the file as it is now: any write to it, or another file in its place, gives another stamp."""
        status = path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        facts = (path.absolute(), status.st_size, *times, status.st_ino, sha256, judge.__qualname__)
        return self._cache / "checked" / hashlib.sha256(repr(facts).encode()).hexdigest()

    def _stamp(self, stamp: Path) -> None:
        with contextlib.suppress(OSError):  # without a writable cache, files are hashed again; nothing else changes
            private_folder(stamp.parent)
            stamp.touch(FILE_MODE)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # below a folder that is not ours
        return False


def private_folder(folder: Path) -> None:
    """Make a folder and its missing parents, for this user alone; restrict an existing folder in the same way."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(FOLDER_MODE, exist_ok=True)
    if not missing and folder.stat().st_mode & 0o077:
        folder.chmod(FOLDER_MODE)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for_each_chunk(str(path), digest.update)
    return digest.hexdigest()


def _compare(found: str, expected: str, name: str) -> None:
    if found != expected:
        raise CorruptError(
            f"{name} is damaged: sha256 is {found[:NAME_DIGITS]}.., expected {expected[:NAME_DIGITS]}..; restore it, "
            "or index again into a new store"
        )


def _missing(name: str) -> CorruptError:
    return CorruptError(f"{name} is missing: restore it, or index again into a new store")
