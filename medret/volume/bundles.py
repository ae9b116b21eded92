"""Zips and tars of a DICOM series: their members in memory, within bounds. No name in them becomes a path."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

from medret.archive.series import is_candidate
from medret.errors import QuarantineCode, VolumeError
from medret.visible import visible
from medret.volume.content import Bytes, Part
from medret.volume.inflate import MIB, End, inflate_up_to, is_gzip
from medret.volume.limits import Limits

_MOST_MEMBERS = 100_000
_HEADERS_BYTES = 256 * MIB  # of all instances, beside the voxels that the limit allows
_TAR_MAGIC_AT, _TAR_MAGIC = 257, b"ustar"
_TAR_START_BYTES = 512
_ENCRYPTED = 0x1


def is_zip(data: Bytes) -> bool:
    """Whether the bytes begin like a zip archive."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def is_tar(data: Bytes) -> bool:
    """Whether the bytes begin like a tar archive, or like a gzip stream of one."""
    start = bytes(data[:_TAR_START_BYTES])
    if is_gzip(data):
        try:
            start = bytes(inflate_up_to(data, _TAR_START_BYTES)[0])
        except VolumeError:  # the reader of NIfTI files tells what is wrong with the stream
            return False
    return start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC


def unzipped(data: Bytes, limits: Limits) -> tuple[Part, ...]:
    """The files in a zip archive; raises VolumeError BUNDLE_CORRUPT, TOO_LARGE."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and _is_wanted(member.filename)]
            _check_sizes([member.file_size for member in members], limits)
            if any(member.flag_bits & _ENCRYPTED for member in members):
                raise VolumeError(QuarantineCode.BUNDLE_CORRUPT, "the zip archive is encrypted: store it unencrypted")
            return tuple(Part(member.filename, archive.read(member)) for member in members)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        raise VolumeError(QuarantineCode.BUNDLE_CORRUPT, f"the zip archive is damaged ({error})") from error


def untarred(data: Bytes, limits: Limits) -> tuple[Part, ...]:
    """The files in a tar archive, which may be gzipped; raises VolumeError BUNDLE_CORRUPT, TOO_LARGE, GZIP_CORRUPT."""
    content: Bytes | bytearray = data
    if is_gzip(data):
        most = _most_bytes(limits)
        content, end = inflate_up_to(data, most)
        if end is End.BOUND:
            raise VolumeError(QuarantineCode.TOO_LARGE, f"the tar archive inflates to over {most} bytes")
    try:
        return tuple(_members(content, limits))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
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
