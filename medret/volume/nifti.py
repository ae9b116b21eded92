"""From an object to a checked NIfTI file in memory: first the header, then where it lies, then the voxels.

The first bytes of an object decide what it is, never its name. The header is in the first few inflated bytes; the sizes
it declares are compared with the limits and with the stream before memory is allocated. The affine comes from the
sform, else from the qform, else it is assumed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.content import DEFLATE_MAX_RATIO, MIB, Bytes, End, Limits, describe, inflate, inflate_up_to, is_gzip
from medret.volume.header import LONGEST_HEADER_BYTES, NiftiHeader, check_extensions, nifti_version, parse_header
from medret.volume.orientation import LEAST_MM, MOST_MM, Placement, check_affine, is_plausible
from medret.volume.stored import StoredVolume

START_BYTES = 256 << 10  # start of an object: enough for any header, also after a gzip header with a long name
_ALWAYS_TOLERATED_BYTES = 4096
_SAME = 1e-3  # of a voxel spacing
_HALF_TURN = {1: 3 * 2.0**-23, 2: 3 * 2.0**-52}  # rounding of the stored floats per version; nibabel has the same


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


def placement_of(header: NiftiHeader) -> Placement:
    """The first usable form; the assumed placement if no form is set.

    Raises VolumeError AFFINE_INVALID if it has forms but all are singular or not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # values that overflow are refused
        forms = [form for form in (_sform(header), _qform(header)) if form]
        if not forms:
            return _assumed(header)
        return _first_usable(forms, header)


def _first_usable(forms: list[Placement], header: NiftiHeader) -> Placement:
    usable, refusals = [], []
    for form in forms:
        try:
            check_affine(form.affine, form.source)
        except VolumeError as error:
            refusals.append(error)
        else:
            usable.append(form)
    if not usable:
        raise refusals[0]
    if len(usable) > 1 and _is_placeholder(header):
        return replace(usable[1], passed_over="the sform is a unit matrix, which the stored voxel spacing contradicts")
    return usable[0] if usable[0] is forms[0] else replace(usable[0], passed_over=refusals[0].reason)


def _sform(header: NiftiHeader) -> Placement | None:
    if header.sform_code <= 0:
        return None
    affine = np.eye(4)
    affine[:3] = np.reshape(header.srow, (3, 4)) * header.unit_mm
    return Placement(affine, "sform")


def _qform(header: NiftiHeader) -> Placement | None:
    if header.qform_code <= 0:
        return None
    spacing, spacing_assumed = _spacing(header)
    handedness = -1.0 if header.pixdim[0] < 0 else 1.0  # 0 means 1 (nifti1.h)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(header) * spacing * (1.0, 1.0, handedness)
    affine[:3, 3] = np.array(header.qoffset) * header.unit_mm
    return Placement(affine, "qform", spacing_assumed)


def _is_placeholder(header: NiftiHeader) -> bool:
    """Whether the sform is a placeholder: a unit matrix, although the stored spacing is not 1 mm."""
    is_unit = np.array_equal(np.reshape(header.srow, (3, 4))[:, :3], np.eye(3))
    return is_unit and not np.allclose(np.abs(header.pixdim[1:4]), 1, rtol=_SAME)


def _assumed(header: NiftiHeader) -> Placement:
    """nibabel's assumption (docs/decisions/0008): centred, stored from right to left, back to front, bottom to top."""
    spacing, spacing_assumed = _spacing(header)
    spacing *= (-1.0, 1.0, 1.0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(header.shape[:3]) - 1) / 2
    return Placement(affine, "assumed", spacing_assumed)


def _spacing(header: NiftiHeader) -> tuple[NDArray[np.float64], bool]:
    """(3,) mm along the stored axes, and whether 1 mm replaces an impossible spacing, as in every reader."""
    stored = np.abs(np.array(header.pixdim[1:4], dtype=np.float64)) * header.unit_mm
    usable = (stored > LEAST_MM) & (stored < MOST_MM)
    spacing = np.where(usable, stored, 1.0)
    if not is_plausible(spacing):
        return np.ones(3), True
    return spacing, not usable.all()


def _rotation(header: NiftiHeader) -> NDArray[np.float64]:
    """(3, 3) rotation from the three stored parts of a unit quaternion (nifti1.h, method 2)."""
    b, c, d = header.quatern
    square = b * b + c * c + d * d
    if (
        square > 1 - _HALF_TURN[header.version]
    ):  # a half turn up to rounding: its real part is 0 (non-finite values fail later)
        scale = 1 / math.sqrt(square)
        b, c, d = b * scale, c * scale, d * scale
        square = 1.0
    a = math.sqrt(1 - square)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
