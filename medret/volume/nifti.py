"""From an object to a checked NIfTI file in memory: first the header, then the voxels.

The first bytes of an object decide what it is, never its name. The header is in the first few inflated bytes; the sizes
it declares are compared with the limits and with the stream before memory is allocated.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.content import Bytes
from medret.volume.forms import placement_of
from medret.volume.header import (
    LONGEST_HEADER_BYTES,
    NiftiHeader,
    check_extensions,
    nifti_version,
    parse_header,
)
from medret.volume.inflate import DEFLATE_MAX_RATIO, MIB, End, inflate, inflate_up_to, is_gzip
from medret.volume.limits import Limits
from medret.volume.signatures import describe
from medret.volume.stored import StoredVolume

START_BYTES = 256 << 10  # start of an object: enough for any header, also after a gzip header with a long name
_ALWAYS_TOLERATED_BYTES = 4096


def open_nifti(data: Bytes, limits: Limits) -> StoredVolume:
    """Decompress gzip, check header, length and affine; raises only VolumeError, whatever the bytes."""
    if not data:
        raise VolumeError(QuarantineCode.EMPTY, "the object has no bytes")
    compressed = is_gzip(data)
    header = parse_header(_start(data, compressed), limits)
    tolerated = _tolerated_bytes(header)
    content: Bytes | bytearray = data
    if compressed:
        _check_length(header, len(data))
        content = inflate(data, header.file_bytes, tolerated)
    if len(content) < header.file_bytes:
        raise VolumeError(
            QuarantineCode.TRUNCATED,
            f"the file ends after {len(content)} bytes, its header promises {header.file_bytes}",
        )
    if len(content) > header.file_bytes + tolerated:
        raise VolumeError(
            QuarantineCode.HEADER_INVALID,
            f"the file has {len(content)} bytes, its header declares {header.file_bytes}: its dimensions are wrong",
        )
    view = memoryview(content)
    check_extensions(view, header)
    return StoredVolume(
        format=f"NIfTI-{header.version}",
        shape=header.shape,
        dtype=header.dtype,
        scaling=header.scaling,
        placement=placement_of(header),
        voxels=partial(_voxels, view, header),
        trailing_bytes=len(content) - header.file_bytes,
    )


def _voxels(content: memoryview, header: NiftiHeader, time_point: int) -> NDArray[Any]:
    """(x, y, z) stored values: a view of the content's memory, as time is the slowest of NIfTI's axes."""
    shape = header.shape[:3]
    count = math.prod(shape)
    start = header.vox_offset + time_point * count * header.dtype.itemsize
    return np.frombuffer(content, header.dtype, count, start).reshape(shape, order="F")


def judge_nifti(start: bytes, size_bytes: int, limits: Limits) -> None:
    """Refuse an object by its first bytes and its size, before the rest is read; raises VolumeError.

    start: its first `START_BYTES`. An object that passes is within the limits, and is checked again after reading. A
    gzip stream whose own header is longer than `start` passes.
    """
    compressed = is_gzip(start)
    if compressed and len(inflate_up_to(start, LONGEST_HEADER_BYTES)[0]) < LONGEST_HEADER_BYTES:
        return
    header = parse_header(_start(start, compressed), limits)
    most = header.file_bytes + _tolerated_bytes(header)
    if compressed:
        most += most // 1000 + MIB  # deflate's overhead on incompressible voxels, and padding
    if size_bytes > most:
        raise VolumeError(
            QuarantineCode.HEADER_INVALID,
            f"the {'compressed ' if compressed else ''}file has {size_bytes} bytes, its header declares "
            f"{header.file_bytes}: its dimensions are wrong",
        )


def _start(data: Bytes, compressed: bool) -> bytes:
    """The first decompressed bytes, enough for any header."""
    head, end = data[:LONGEST_HEADER_BYTES], End.DONE
    if compressed:
        inflated, end = inflate_up_to(data, LONGEST_HEADER_BYTES)
        head = bytes(inflated)
    if nifti_version(head) is not None:
        return head
    if end is End.CUT:
        raise VolumeError(QuarantineCode.TRUNCATED, f"the gzip stream breaks off after {len(head)} bytes")
    if not head:
        raise VolumeError(QuarantineCode.EMPTY, "the gzip stream holds no bytes")
    where = "the gzip stream holds no NIfTI file" if compressed else "neither NIfTI nor gzip"
    raise VolumeError(QuarantineCode.NOT_NIFTI, f"{where}; {describe(head)}")


def _tolerated_bytes(header: NiftiHeader) -> int:
    """How many bytes of padding may follow the voxels. With a whole slice or more, the dimensions must be wrong."""
    slice_bytes = header.shape[0] * header.shape[1] * header.dtype.itemsize
    return min(max(_ALWAYS_TOLERATED_BYTES, slice_bytes - 1), MIB)


def _check_length(header: NiftiHeader, compressed_bytes: int) -> None:
    """Refuse a header that declares more than the stream can hold, before memory is allocated."""
    declared = header.file_bytes
    if declared > compressed_bytes * DEFLATE_MAX_RATIO:
        raise VolumeError(
            QuarantineCode.TRUNCATED,
            f"the header promises {declared} bytes; {compressed_bytes} compressed bytes can hold "
            f"{compressed_bytes * DEFLATE_MAX_RATIO} at most",
        )
