"""NIfTI headers: what nibabel reads, and what is refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.volume.content import Limits
from medret.volume.header import LONGEST_HEADER_BYTES, NiftiHeader, parse_header
from medret.volume.stored import Scaling


def parse(data: bytes, limits: Limits | None = None) -> NiftiHeader:
    return parse_header(data[:LONGEST_HEADER_BYTES], limits or Limits())


def refusal(data: bytes, limits: Limits | None = None) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        parse(data, limits)
    return caught.value


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_agrees_with_nibabel(phantoms: Any, version: int, big_endian: bool, dtype: str) -> None:
    affine = np.array([[0.9, 0.1, 0, -40], [-0.1, 1.2, 0.2, 3], [0, -0.2, 2.5, 7], [0, 0, 0, 1.0]])
    data = phantoms.nifti(
        np.zeros((9, 10, 11, 3), dtype), affine, codes=(1, 2), slope=2.5, inter=-3, version=version,
        big_endian=big_endian, compress=False,
    )  # fmt: skip
    theirs = (nib.Nifti1Image if version == 1 else nib.Nifti2Image).from_stream(io.BytesIO(data)).header
    ours = parse(data)
    assert ours.version == version
    assert ours.shape == theirs.get_data_shape()
    assert ours.dtype == theirs.get_data_dtype()
    assert ours.scaling == Scaling(2.5, -3)
    assert (ours.qform_code, ours.sform_code) == (1, 2)
    assert ours.pixdim == tuple(theirs["pixdim"])
    assert np.allclose(np.reshape(ours.srow, (3, 4)), affine[:3])
    assert (*ours.quatern, *ours.qoffset) == tuple(
        float(theirs[name]) for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    )
    assert ours.file_bytes == len(data)


@pytest.mark.parametrize(
    ("offset", "value", "code", "words"),
    [
        (344, b"xxxx", QuarantineCode.HEADER_INVALID, "xxxx"),
        (344, b"ni1\0", QuarantineCode.HEADER_INVALID, "pair"),
        (344, b"\0\0\0\0", QuarantineCode.NOT_NIFTI, "Analyze"),
        (40, struct.pack("<h", 0), QuarantineCode.HEADER_INVALID, r"dim\[0\]"),
        (40, struct.pack("<h", 8), QuarantineCode.HEADER_INVALID, r"dim\[0\]"),
        (40, struct.pack("<h", 2), QuarantineCode.DIMENSIONS_UNSUPPORTED, "2D"),
        (40, struct.pack("<h", 1), QuarantineCode.DIMENSIONS_UNSUPPORTED, "1D"),
        (40, struct.pack("<6h", 5, 9, 10, 11, 1, 2), QuarantineCode.DIMENSIONS_UNSUPPORTED, "5D"),
        (42, struct.pack("<h", -9), QuarantineCode.HEADER_INVALID, "positive"),
        (44, struct.pack("<h", 0), QuarantineCode.HEADER_INVALID, "positive"),
        (42, struct.pack("<3h", 32767, 32767, 32767), QuarantineCode.TOO_LARGE, "limit"),
        (42, struct.pack("<3h", 3, 3, 3), QuarantineCode.TOO_SMALL, "at least 8"),
        (42, struct.pack("<3h", 1, 1, 300), QuarantineCode.TOO_SMALL, "at least 8"),
        (70, struct.pack("<h", 9999), QuarantineCode.DATATYPE_UNSUPPORTED, "9999"),
        (70, struct.pack("<h", 128), QuarantineCode.DATATYPE_UNSUPPORTED, "RGB24"),
        (70, struct.pack("<h", 32), QuarantineCode.DATATYPE_UNSUPPORTED, "complex64"),
        (70, struct.pack("<h", 1536), QuarantineCode.DATATYPE_UNSUPPORTED, "float128"),
        (70, struct.pack("<h", 0), QuarantineCode.DATATYPE_UNSUPPORTED, "datatype 0"),
        (108, struct.pack("<f", 0), QuarantineCode.HEADER_INVALID, "vox_offset"),
        (108, struct.pack("<f", 352.5), QuarantineCode.HEADER_INVALID, "vox_offset"),
        (108, struct.pack("<f", -352), QuarantineCode.HEADER_INVALID, "vox_offset"),
        (108, struct.pack("<f", float("nan")), QuarantineCode.HEADER_INVALID, "vox_offset"),
        (108, struct.pack("<f", 1e12), QuarantineCode.HEADER_INVALID, "vox_offset"),
    ],
)  # fmt: skip
def test_what_is_refused(phantoms: Any, offset: int, value: bytes, code: QuarantineCode, words: str) -> None:
    data = phantoms.nifti(np.zeros((9, 10, 11), np.uint8), compress=False, patch={offset: value})
    error = refusal(data)
    assert error.code == code
    with pytest.raises(VolumeError, match=words):
        parse(data)


def test_dimensions_of_nifti2_do_not_overflow(phantoms: Any) -> None:
    huge = {16: struct.pack("<4q", 3, 2**62, 2**62, 2**62)}
    assert (
        refusal(phantoms.nifti(np.zeros((9, 10, 11), "u1"), version=2, patch=huge, compress=False)).code == "too_large"
    )


def test_trailing_ones_and_zeros_are_no_dimensions(phantoms: Any) -> None:
    """C12: dim[4] = 0 with dim[0] = 4 is one time point, as in the NIfTI C library."""
    data = phantoms.nifti(np.zeros((9, 10, 1, 1, 1), np.uint8), compress=False)
    assert parse(data).shape == (9, 10, 1)
    for dim in ([4, 9, 10, 11, 0], [5, 9, 10, 11, 0, 0], [7, 9, 10, 11, 1, 0, 1, 0]):
        patch = {40: struct.pack(f"<{len(dim)}h", *dim)}
        assert parse(phantoms.nifti(np.zeros((9, 10, 11), np.uint8), compress=False, patch=patch)).shape == (9, 10, 11)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("code", "unit_mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 + 8, 1), (3 + 16, 0.001), (4, 1), (7, 1)]
)
def test_units_of_length(phantoms: Any, version: int, code: int, unit_mm: float) -> None:
    """C11: metre and micron are applied, unknown codes and none are millimetres, units of time do not matter."""
    patch = {123: bytes([code])} if version == 1 else {500: struct.pack("<i", code)}
    data = phantoms.nifti(np.zeros((9, 10, 11), np.uint8), version=version, compress=False, patch=patch)
    assert parse(data).unit_mm == unit_mm
    theirs = (nib.Nifti1Image if version == 1 else nib.Nifti2Image).from_stream(io.BytesIO(data)).header
    assert int(theirs["xyzt_units"]) == code


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(0.0, 5.0, (1, 0)), (np.nan, 5.0, (1, 0)), (np.inf, 5.0, (1, 0)), (2.0, np.nan, (2, 0)), (-1.0, 3.0, (-1, 3))],
)
def test_scaling_that_is_none(phantoms: Any, slope: float, inter: float, expected: tuple[float, float]) -> None:
    data = phantoms.nifti(np.zeros((9, 10, 11), np.uint8), slope=slope, inter=inter, compress=False)
    assert parse(data).scaling == Scaling(*expected)


def test_real_values_are_stored_times_slope_plus_inter() -> None:
    stored: NDArray[np.uint8] = np.array([0, 1, 200], np.uint8)
    assert Scaling(0.5, -1).real(stored).tolist() == [-1, -0.5, 99]


def test_short_and_foreign_starts() -> None:
    assert refusal(struct.pack("<i", 348) + b"\0" * 100).code == QuarantineCode.TRUNCATED
    assert refusal(b"\x5c").code == QuarantineCode.NOT_NIFTI
    assert refusal(b"hello, this is text").code == QuarantineCode.NOT_NIFTI
