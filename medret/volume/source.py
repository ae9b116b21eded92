"""Where a volume is read from: one object, or the objects of a DICOM series in a folder.

The URI alone says what to read: an object; else the one series in a folder; else, if it ends in a SeriesInstanceUID,
that series in the folder above. What a listing knows besides is only a short cut to the same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TypeVar

from medret.archive.looks import find_series
from medret.archive.series import Whole
from medret.errors import QuarantineCode, VolumeError
from medret.storage import Identity, StoredObject, in_words, reaching, scheme_of
from medret.volume.content import Content, Part
from medret.volume.limits import Limits
from medret.volume.open import read_judged

Result = TypeVar("Result")

PARTS_AT_ONCE = 16  # objects of a series that are read side by side, unless they lie on disk


@dataclass(frozen=True)
class VolumeSource:
    """One volume in its store, as an archive.ArchiveObject says it: see there.

    Methods raise VolumeError, or whatever the filesystem's library raises.
    """

    uri: str
    parts: int | None = None
    names: tuple[str, ...] | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's disks and mounts."""
        return not scheme_of(self.uri)

    def identity(self) -> Identity:
        """Ask the store now."""
        if self.parts is None:
            return StoredObject(self.uri).identity()
        return Whole.of(self._found()[1]).identity()

    def read(self, size_bytes: int, limits: Limits) -> Content:
        """Read the object, or all objects of the series. size_bytes: of the whole, as it was listed."""
        if self.parts is None:
            return read_judged(StoredObject(self.uri), size_bytes, limits)
        folder, found = self._found()
        size_bytes = sum(one.size_bytes for one in found.values())
        if size_bytes > limits.max_voxels_bytes + limits.max_header_bytes:
            raise VolumeError(
                QuarantineCode.TOO_LARGE,
                f"its {len(found)} objects have {size_bytes} bytes, the limit is {limits.max_voxels_bytes}",
            )
        contents = self._each(folder, found, StoredObject.read)
        return tuple(Part(name, data) for name, data in zip(found, contents, strict=True))

    def sha256(self) -> str:
        """As `content_sha256` of what `read` gives, in little memory."""
        if self.parts is None:
            return StoredObject(self.uri).sha256()
        digests = sorted(bytes.fromhex(each) for each in self._each(*self._found(), StoredObject.sha256))
        return sha256(b"".join(digests)).hexdigest()

    def sample(self, size_bytes: int, sample_bytes: int) -> bytes:
        """The bytes in the middle of the object, or of the first object of the series. size_bytes: of the whole."""
        uri = self.uri
        if self.parts is not None:
            folder, found = self._found()
            name = next(iter(found))
            uri, size_bytes = f"{folder}/{name}", found[name].size_bytes
        start = max(0, (size_bytes - sample_bytes) // 2)
        return StoredObject(uri).read(start, start + sample_bytes)

    def _found(self) -> tuple[str, dict[str, Identity]]:
        return find_series(self.uri, self.names, alone=True)

    def _each(self, folder: str, names: Iterable[str], read: Callable[[StoredObject], Result]) -> list[Result]:
        one = partial(_named, folder, read)
        if self.is_local:
            return list(map(one, names))
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            return list(pool.map(one, names))


def _named(folder: str, read: Callable[[StoredObject], Result], name: str) -> Result:
    try:
        return read(StoredObject(f"{folder}/{name}"))
    except MemoryError:
        raise
    except Exception as error:
        raise VolumeError(QuarantineCode.UNREADABLE, f"{name}: {type(error).__name__}: {in_words(error)}") from error


def fetch_volume(uri: str, limits: Limits) -> Content:
    """Read the volume at a URI; raises VolumeError, FileNotFoundError, UsageError, StorageError."""
    with reaching(uri, "read"):
        try:
            return read_judged(source := StoredObject(uri), source.identity().size_bytes, limits)
        except (FileNotFoundError, IsADirectoryError):
            _, found = find_series(uri)
            return VolumeSource(uri, len(found), tuple(found)).read(0, limits)


def size_of(content: Content) -> int:
    """Bytes of all objects."""
    return sum(len(part.data) for part in content) if isinstance(content, tuple) else len(content)
