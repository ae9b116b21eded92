"""From where a volume lies to the stored volume: read it, unpack it, and open it as what its first bytes say it is.

The URI alone says what to read: an object; else the one series in a folder; else, if it ends in a SeriesInstanceUID,
that series in the folder above. What a listing knows besides is only a short cut to the same objects.

The first bytes of an object decide what it is, never a name. Zips and tars of a DICOM series are unpacked in memory,
within bounds; no name in them becomes a path.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TypeVar

from medret.archive.dicom_head import read_head
from medret.archive.looks import find_series
from medret.archive.series import Whole, is_candidate
from medret.errors import QuarantineCode, VolumeError
from medret.storage import Identity, StoredObject, in_words, reaching, scheme_of
from medret.visible import visible
from medret.volume.content import MIB, Bytes, Content, End, Limits, Part, inflate_up_to, is_gzip
from medret.volume.dicom import open_series
from medret.volume.nifti import START_BYTES, judge_nifti, open_nifti
from medret.volume.stored import StoredVolume

Result = TypeVar("Result")

PARTS_AT_ONCE = 16  # objects of a series that are read side by side, unless they lie on disk
_JUDGED_FIRST_BYTES = 64 * MIB  # for larger objects a second request costs little beside the first
_DICOM_START_BYTES = 4096
_MOST_MEMBERS = 100_000
_HEADERS_BYTES = 256 * MIB  # of all instances, beside the voxels that the limit allows
_TAR_MAGIC_AT, _TAR_MAGIC = 257, b"ustar"
_TAR_START_BYTES = 512
_ENCRYPTED = 0x1
_INFLATED_IN_PARTS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # by Python, the others whole


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
            return _read_judged(StoredObject(self.uri), size_bytes, limits)
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
            return _read_judged(source := StoredObject(uri), source.identity().size_bytes, limits)
        except (FileNotFoundError, IsADirectoryError):
            _, found = find_series(uri)
            return VolumeSource(uri, len(found), tuple(found)).read(0, limits)


def size_of(content: Content) -> int:
    """Bytes of all objects."""
    return sum(len(part.data) for part in content) if isinstance(content, tuple) else len(content)


def open_volume(content: Content, limits: Limits) -> StoredVolume:
    """Decode and check a volume as far as its voxels; raises only VolumeError, whatever the bytes."""
    if isinstance(content, tuple):
        return open_series(content, limits)
    if _is_dicom(content):
        return open_series((Part("", bytes(content)),), limits)
    unpack = _unzipped if is_zip(content) else _untarred if _is_tar(content) else None
    if unpack is None:
        return open_nifti(content, limits)
    parts = unpack(content, limits)
    if not parts:
        raise VolumeError(
            QuarantineCode.NOT_NIFTI,
            "it is a zip or tar archive without a DICOM series: unpack it, and store each volume as .nii or .nii.gz",
        )
    return open_series(parts, limits)


def is_zip(data: Bytes) -> bool:
    """Whether the bytes begin like a zip archive."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def _read_judged(source: StoredObject, size_bytes: int, limits: Limits) -> bytes:
    """Read an object; a large one only after its first bytes proved to be those of a volume within the limits.

    DICOM objects, zips and tars are not much larger than their voxels: unless they are, they are read as a whole.
    Raises VolumeError, or whatever the object's filesystem raises.
    """
    if size_bytes > _JUDGED_FIRST_BYTES:
        start = source.read(0, START_BYTES)
        if not (_is_dicom(start) or is_zip(start) or _is_tar(start)):
            judge_nifti(start, size_bytes, limits)
        elif size_bytes > (most := _most_bytes(limits)):
            raise VolumeError(QuarantineCode.TOO_LARGE, f"it has {size_bytes} bytes, the limit is {most}")
    return source.read()


def _is_dicom(data: Bytes) -> bool:
    return read_head(data[:_DICOM_START_BYTES]) is not None


def _is_tar(data: Bytes) -> bool:
    """Whether the bytes begin like a tar archive, or like a gzip stream of one."""
    start = bytes(data[:_TAR_START_BYTES])
    if is_gzip(data):
        try:
            start = bytes(inflate_up_to(data, _TAR_START_BYTES)[0])
        except VolumeError:  # the reader of NIfTI files tells what is wrong with the stream
            return False
    return start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC


def _unzipped(data: Bytes, limits: Limits) -> tuple[Part, ...]:
    """The files in a zip archive; raises VolumeError BUNDLE_CORRUPT, TOO_LARGE."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and _is_wanted(member.filename)]
            _check_sizes([member.file_size for member in members], limits)
            if any(member.flag_bits & _ENCRYPTED for member in members):
                raise VolumeError(QuarantineCode.BUNDLE_CORRUPT, "the zip archive is encrypted: store it unencrypted")
            if others := sorted({member.compress_type for member in members} - _INFLATED_IN_PARTS):
                raise VolumeError(
                    QuarantineCode.BUNDLE_CORRUPT,
                    f"the zip archive is compressed by method {others[0]}, expected 0 (stored) or 8 (deflate)",
                )
            return tuple(Part(member.filename, _inflated(archive, member)) for member in members)
    except (VolumeError, MemoryError):
        raise
    except Exception as error:  # whatever its bytes make of Python's reader
        raise VolumeError(QuarantineCode.BUNDLE_CORRUPT, f"the zip archive is damaged ({error})") from error


def _inflated(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member of the size that it declares: no more is inflated. Its checksum is compared at its end."""
    with archive.open(member) as content:
        data = content.read(member.file_size)
    if len(data) < member.file_size:
        raise EOFError(f"{visible(member.filename)} ends early")
    return data


def _untarred(data: Bytes, limits: Limits) -> tuple[Part, ...]:
    """The files in a tar archive, which may be gzipped; raises VolumeError BUNDLE_CORRUPT, TOO_LARGE, GZIP_CORRUPT."""
    content: Bytes | bytearray = data
    if is_gzip(data):
        most = _most_bytes(limits)
        content, end = inflate_up_to(data, most)
        if end is End.BOUND:
            raise VolumeError(QuarantineCode.TOO_LARGE, f"the tar archive inflates to over {most} bytes")
    try:
        return tuple(_members(content, limits))
    except (VolumeError, MemoryError):
        raise
    except Exception as error:  # whatever its bytes make of Python's reader
        raise VolumeError(QuarantineCode.BUNDLE_CORRUPT, f"the tar archive is damaged ({error})") from error


def _members(content: Bytes | bytearray, limits: Limits) -> Iterator[Part]:
    view, sizes = memoryview(content), []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            if not member.isreg() or member.issparse() or not _is_wanted(member.name):
                continue
            end = member.offset_data + member.size
            if end > len(view):
                raise tarfile.ReadError(f"it ends within {visible(member.name)}")
            sizes.append(member.size)
            _check_sizes(sizes, limits)
            yield Part(member.name, bytes(view[member.offset_data : end]))


def _is_wanted(name: str) -> bool:
    """Whether a file may be an instance, by the rules for folders; not one of those that macOS adds."""
    parts = name.replace("\\", "/").split("/")
    return is_candidate(parts[-1]) and "__MACOSX" not in parts


def _check_sizes(sizes: list[int], limits: Limits) -> None:
    if len(sizes) > _MOST_MEMBERS or sum(sizes) > _most_bytes(limits):
        raise VolumeError(
            QuarantineCode.TOO_LARGE,
            f"{len(sizes)} files with {sum(sizes)} bytes; the limits are {_MOST_MEMBERS} and {_most_bytes(limits)}",
        )


def _most_bytes(limits: Limits) -> int:
    return limits.max_voxels_bytes + _HEADERS_BYTES
