"""NIfTI-1 and NIfTI-2 headers: 348 or 540 bytes to a checked `NiftiHeader`, within the limits for a volume.

Field offsets come from nifti1.h and nifti2.h (https://nifti.nimh.nih.gov). Only fields that decide voxels and geometry
are read. A bad header is refused before any voxel is decoded.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from medret.errors import QuarantineCode, VolumeError
from medret.volume.content import Limits, check_sides, describe
from medret.volume.stored import Scaling

# Field -> (struct format, offset). sizeof_hdr, the first field, tells the two versions apart.
_NIFTI1 = {
    "dim": ("8h", 40),
    "datatype": ("h", 70),
    "pixdim": ("8f", 76),
    "vox_offset": ("f", 108),
    "scl": ("2f", 112),
    "xyzt_units": ("B", 123),
    "form_codes": ("2h", 252),
    "quatern": ("3f", 256),
    "qoffset": ("3f", 268),
    "srow": ("12f", 280),
    "magic": ("4s", 344),
}
_NIFTI2 = {
    "dim": ("8q", 16),
    "datatype": ("h", 12),
    "pixdim": ("8d", 104),
    "vox_offset": ("q", 168),
    "scl": ("2d", 176),
    "form_codes": ("2i", 344),
    "quatern": ("3d", 352),
    "qoffset": ("3d", 376),
    "srow": ("12d", 400),
    "xyzt_units": ("i", 500),
    "magic": ("8s", 4),
}
HEADER_BYTES = {1: 348, 2: 540}
LONGEST_HEADER_BYTES = 540 + 4  # with the four bytes that announce extensions
_LAYOUTS = {1: _NIFTI1, 2: _NIFTI2}
_MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\032\n"}
_PAIR_MAGIC = {1: b"ni1\0", 2: b"ni2\0\r\n\032\n"}

_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # metre, millimetre, micron; other codes are not lengths
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_UNSUPPORTED = {
    1: "binary",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}


@dataclass(frozen=True)
class NiftiHeader:
    """A checked header. Lengths are in the header's own unit.

    byte_order: "<" or ">".
    shape: sides in voxels as stored, without trailing ones: three, or four with time.
    dtype: of one voxel, with its byte order.
    unit_mm: length of the header's unit: 1000 for metres, 0.001 for microns, 1 for millimetres and if none is named.
    pixdim: pixdim[0] is the handedness of the qform; pixdim[1:4] the spacing.
    srow: row-major 3x4.
    """

    version: int
    byte_order: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    vox_offset: int
    scaling: Scaling
    unit_mm: float
    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quatern: tuple[float, ...]
    qoffset: tuple[float, ...]
    srow: tuple[float, ...]

    @property
    def voxels_bytes(self) -> int:
        """Bytes of all voxels, every time point."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Bytes from the start of the (inflated) file to the end of the last voxel."""
        return self.vox_offset + self.voxels_bytes


def nifti_version(head: bytes) -> tuple[int, str] | None:
    """(1 or 2, "<" or ">") from the first four bytes; None if they do not begin a NIfTI header."""
    for order in "<>":
        for version, size in HEADER_BYTES.items():
            if head[:4] == struct.pack(f"{order}i", size):
                return version, order
    return None


def parse_header(head: bytes, limits: Limits) -> NiftiHeader:
    """Read and check a header. head: the first bytes of the inflated file, at most `LONGEST_HEADER_BYTES`.

    Raises VolumeError: NOT_NIFTI, TRUNCATED, HEADER_INVALID, DATATYPE_UNSUPPORTED, DIMENSIONS_UNSUPPORTED, TOO_SMALL,
    TOO_LARGE.
    """
    version_and_order = nifti_version(head)
    if version_and_order is None:
        raise VolumeError(QuarantineCode.NOT_NIFTI, f"the content is not a NIfTI file; {describe(head)}")
    version, order = version_and_order
    if len(head) < HEADER_BYTES[version]:
        raise VolumeError(
            QuarantineCode.TRUNCATED,
            f"the content ends after {len(head)} bytes, within the {HEADER_BYTES[version]}-byte header",
        )

    def field(name: str) -> tuple[Any, ...]:
        layout, offset = _LAYOUTS[version][name]
        return struct.unpack_from(order + layout, head, offset)

    _check_magic(version, field("magic")[0])
    dtype = _dtype(field("datatype")[0], order)
    shape = _shape(field("dim"))
    offset = _vox_offset(version, field("vox_offset")[0], limits)
    qform_code, sform_code = field("form_codes")
    header = NiftiHeader(
        version=version,
        byte_order=order,
        shape=shape,
        dtype=dtype,
        vox_offset=offset,
        scaling=_scaling(*field("scl")),
        unit_mm=_MM_PER_UNIT.get(field("xyzt_units")[0] & 0x07, 1.0),
        qform_code=qform_code,
        sform_code=sform_code,
        **{name: field(name) for name in ("pixdim", "quatern", "qoffset", "srow")},
    )
    _check_size(header, limits)
    return header


def check_extensions(content: memoryview, header: NiftiHeader) -> None:
    """Refuse a file whose header extensions overlap the voxels; the extensions' content is never read.

    content: the inflated file, at least up to the voxels. Raises HEADER_INVALID.
    """
    at = HEADER_BYTES[header.version]
    if content[at] == 0:
        return
    at += 4
    while at + 8 <= header.vox_offset:
        (size,) = struct.unpack_from(f"{header.byte_order}i", content, at)
        if size == 0:  # padding up to the voxels
            return
        if size < 8 or at + size > header.vox_offset:
            raise VolumeError(
                QuarantineCode.HEADER_INVALID,
                f"a header extension claims {size} bytes from byte {at}; the voxels begin at byte {header.vox_offset}",
            )
        at += size


def _check_magic(version: int, magic: bytes) -> None:
    if magic == _MAGIC[version]:
        return
    if magic == _PAIR_MAGIC[version]:
        reason = (
            "this is the header of a two-file pair (.hdr/.img), whose voxels are elsewhere; convert it to one .nii file"
        )
    elif not magic.strip(b"\0"):
        raise VolumeError(QuarantineCode.NOT_NIFTI, "the header has no NIfTI magic: perhaps an Analyze 7.5 file")
    else:
        reason = f"magic bytes are {magic!r}, expected {_MAGIC[version]!r}"
    raise VolumeError(QuarantineCode.HEADER_INVALID, reason)


def _dtype(code: int, order: str) -> np.dtype[Any]:
    if code not in _DTYPES:
        name = _UNSUPPORTED.get(code, "not a known NIfTI datatype")
        raise VolumeError(
            QuarantineCode.DATATYPE_UNSUPPORTED,
            f"datatype {code} is {name}; integers, float32 and float64 are supported",
        )
    return np.dtype(order + _DTYPES[code])


def _shape(dim: tuple[int, ...]) -> tuple[int, ...]:
    """Three or four sides, without trailing ones. A side of 0 beyond the third is 1, as in the NIfTI C library."""
    rank = dim[0]
    if not 1 <= rank <= 7:
        raise VolumeError(
            QuarantineCode.HEADER_INVALID, f"dim[0], the number of dimensions, is {rank}, expected 3 or 4"
        )
    shape = [*dim[1 : min(rank, 3) + 1], *(side or 1 for side in dim[4 : rank + 1])]
    if min(shape) < 1:
        raise VolumeError(QuarantineCode.HEADER_INVALID, f"dimensions {shape} are not all positive")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not 3 <= len(shape) <= 4:
        raise VolumeError(
            QuarantineCode.DIMENSIONS_UNSUPPORTED,
            f"dimensions {shape} are {len(shape)}D, expected 3D, or 4D with time last",
        )
    return tuple(shape)


def _vox_offset(version: int, declared: float, limits: Limits) -> int:
    least = HEADER_BYTES[version] + 4
    if not math.isfinite(declared) or declared != int(declared) or not least <= declared <= limits.max_header_bytes:
        raise VolumeError(
            QuarantineCode.HEADER_INVALID,
            f"vox_offset is {declared}, expected a whole number of bytes from {least} to {limits.max_header_bytes}",
        )
    return int(declared)


def _scaling(slope: float, inter: float) -> Scaling:
    """A slope of 0, or one that is not finite, means that voxels are not scaled (nifti1.h)."""
    if slope == 0 or not math.isfinite(slope):
        return Scaling()
    return Scaling(slope, inter if math.isfinite(inter) else 0.0)


def _check_size(header: NiftiHeader, limits: Limits) -> None:
    check_sides(header.shape[:3], limits)
    if header.voxels_bytes > limits.max_voxels_bytes:
        raise VolumeError(
            QuarantineCode.TOO_LARGE,
            f"the header declares {' x '.join(map(str, header.shape))} voxels of {header.dtype.itemsize} bytes, "
            f"{header.voxels_bytes} bytes in all; the limit is {limits.max_voxels_bytes}",
        )
