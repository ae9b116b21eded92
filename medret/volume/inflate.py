"""Decompress gzip in one call and in bounded memory.

libdeflate inflates into a buffer whose length is known beforehand: on real CT and MRI volumes 1.1 to 1.6 times as fast
as isal, and 3 times as fast if most voxels are background. It reads a single gzip member and cannot say what is wrong
with a stream, so anything unusual is decompressed again by isal, chunk by chunk, within the same bound.
"""

from __future__ import annotations

import zlib
from enum import Enum
from typing import Any

import deflate
from isal import isal_zlib

from medret.errors import QuarantineCode, VolumeError
from medret.volume.content import Bytes

MIB = 1 << 20

# A deflate symbol of at most 258 bytes takes at least two bits, so no valid stream expands further than this.
DEFLATE_MAX_RATIO = 1032

_MAGIC = b"\x1f\x8b"
_WBITS = 31  # deflate with a gzip header and trailer
_CHUNK_BYTES = 64 << 10  # compressed bytes per call to isal
_FEW_BYTES = 4096  # for less output zlib finishes before isal has set up its tables
_EXCESS_BYTES = 16 * MIB  # how far a stream is read beyond the size in its header, to tell a wrong header from a bomb


class End(Enum):
    """Where decompression stopped."""

    DONE = "after a complete gzip member"
    CUT = "inside a gzip member, for want of bytes"
    BOUND = "at the bound"


def is_gzip(data: Bytes) -> bool:
    """Whether the bytes begin like a gzip stream."""
    return data[:2] == _MAGIC


def inflate(data: Bytes, expected_bytes: int, tolerated_bytes: int) -> bytearray | bytes:
    """Decompress the whole stream and check its CRC.

    expected_bytes: size according to the NIfTI header. tolerated_bytes: how many more are usual. The result may be
    shorter than expected, or up to 16 MiB longer: the caller judges that.
    Raises VolumeError: GZIP_CORRUPT, TRUNCATED (the stream breaks off), TOO_LARGE (it is far longer than expected).
    """
    # The trailer holds the length modulo 2^32. It is only a hint: with a wrong one the slow path reads the file.
    excess = (int.from_bytes(data[-4:], "little") - expected_bytes) % (1 << 32)
    if excess <= tolerated_bytes:
        try:
            content = deflate.gzip_decompress(data, expected_bytes + excess)
        except deflate.DeflateError:
            pass  # isal finds out what is wrong
        else:
            if len(content) == expected_bytes + excess:
                return content
    content, end = inflate_up_to(data, expected_bytes + _EXCESS_BYTES)
    if end is End.CUT:
        raise VolumeError(
            QuarantineCode.TRUNCATED,
            f"the gzip stream breaks off after {len(content)} bytes, the NIfTI header promises {expected_bytes}",
        )
    if end is End.BOUND:
        raise VolumeError(
            QuarantineCode.TOO_LARGE,
            f"the gzip stream goes on for over {_EXCESS_BYTES} bytes beyond the {expected_bytes} of the NIfTI header",
        )
    return content


def inflate_up_to(data: Bytes, bound_bytes: int) -> tuple[bytearray, End]:
    """Decompress at most `bound_bytes` bytes, from one or more gzip members; raises VolumeError GZIP_CORRUPT."""
    content = bytearray()
    view = memoryview(data)
    library: Any = zlib if bound_bytes <= _FEW_BYTES else isal_zlib
    at, stream = 0, None
    while at < len(data):
        if stream is None:
            if data[at : at + 2] != _MAGIC:
                break  # padding after the last member
            stream = library.decompressobj(_WBITS)
        chunk = view[at : at + _CHUNK_BYTES]
        try:
            content += stream.decompress(chunk, bound_bytes - len(content))
        except library.error as error:
            raise VolumeError(
                QuarantineCode.GZIP_CORRUPT, f"the gzip stream is damaged after {len(content)} inflated bytes ({error})"
            ) from error
        if len(content) >= bound_bytes:
            return content, End.BOUND
        at += len(chunk)
        if stream.eof:
            at -= len(stream.unused_data)
            stream = None
    return content, End.DONE if stream is None else End.CUT
