"""Opening files: gzip in all its forms, lengths that lie, bombs."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medret.errors import QuarantineCode, VolumeError
from medret.volume import content as content_module
from medret.volume.content import MIB, End, Limits, inflate, inflate_up_to
from medret.volume.nifti import open_nifti
from medret.volume.stored import StoredVolume

VOXELS = np.random.default_rng(0).integers(0, 4000, (20, 24, 16)).astype(np.int16)


def opened(data: bytes, limits: Limits | None = None) -> StoredVolume:
    return open_nifti(data, limits or Limits())


def refusal(data: bytes, limits: Limits | None = None) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        opened(data, limits)
    return caught.value


def gzip_member(data: bytes, *, name: bytes = b"", extra: bytes = b"", comment: bytes = b"") -> bytes:
    """One gzip member with the optional header fields of RFC 1952."""
    flags = (4 if extra else 0) | (8 if name else 0) | (16 if comment else 0)
    head = struct.pack("<4BI2B", 0x1F, 0x8B, 8, flags, 0, 0, 255)
    head += struct.pack("<H", len(extra)) + extra if extra else b""
    head += name + b"\0" if name else b""
    head += comment + b"\0" if comment else b""
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    return head + deflater.compress(data) + deflater.flush() + struct.pack("<2I", zlib.crc32(data), len(data) % 2**32)


def test_voxels_are_a_view_in_file_order(phantoms: Any) -> None:
    file = opened(phantoms.nifti(VOXELS))
    assert np.array_equal(file.voxels(0), VOXELS)
    assert file.voxels(0).flags.f_contiguous
    assert not file.voxels(0).flags.owndata
    assert file.trailing_bytes == 0


def test_time_points_of_a_series(phantoms: Any) -> None:
    series = np.stack([VOXELS, VOXELS + 1, VOXELS + 2], axis=3)
    file = opened(phantoms.nifti(series))
    for time_point in range(3):
        assert np.array_equal(file.voxels(time_point), VOXELS + time_point)
    assert file.time_points == 3


def test_suffixes_do_not_matter_because_there_are_none(phantoms: Any) -> None:
    plain, packed = phantoms.nifti(VOXELS, compress=False), phantoms.nifti(VOXELS)
    assert np.array_equal(opened(plain).voxels(0), opened(packed).voxels(0))


def test_gzip_with_name_extra_field_and_comment(phantoms: Any) -> None:
    plain = phantoms.nifti(VOXELS, compress=False)
    data = gzip_member(plain, name=b"case.nii", extra=b"x" * 300, comment=b"c" * 70_000)
    assert np.array_equal(opened(data).voxels(0), VOXELS)


def test_several_gzip_members_are_one_stream(phantoms: Any) -> None:
    plain = phantoms.nifti(VOXELS, compress=False)
    parts = [plain[start : start + 700] for start in range(0, len(plain), 700)]
    assert np.array_equal(opened(b"".join(map(gzip.compress, parts))).voxels(0), VOXELS)
    tiny = [plain[start : start + 100] for start in range(0, 1000, 100)] + [plain[1000:]]
    assert np.array_equal(opened(b"".join(map(gzip.compress, tiny))).voxels(0), VOXELS)


@pytest.mark.parametrize("padding", [b"\0" * 10, b"\0" * 5000, b"garbage", b"x"])
def test_bytes_after_the_gzip_stream_are_ignored(phantoms: Any, padding: bytes) -> None:
    assert np.array_equal(opened(phantoms.nifti(VOXELS) + padding).voxels(0), VOXELS)


@pytest.mark.parametrize("compress", [False, True])
def test_padding_after_the_voxels_is_tolerated_and_counted(phantoms: Any, compress: bool) -> None:
    plain = phantoms.nifti(VOXELS, compress=False) + b"\0" * 160
    file = opened(gzip.compress(plain) if compress else plain)
    assert file.trailing_bytes == 160
    assert np.array_equal(file.voxels(0), VOXELS)


@pytest.mark.parametrize("compress", [False, True])
def test_a_header_that_declares_less_than_there_is(phantoms: Any, compress: bool) -> None:
    lie = {42: struct.pack("<3h", 10, 24, 16)}
    error = refusal(phantoms.nifti(VOXELS, patch=lie, compress=compress))
    assert error.code == QuarantineCode.HEADER_INVALID
    assert "declares 8032" in error.reason


@pytest.mark.parametrize("compress", [False, True])
def test_a_header_that_declares_more_than_there_is(phantoms: Any, compress: bool) -> None:
    lie = {42: struct.pack("<3h", 20, 24, 17)}
    assert refusal(phantoms.nifti(VOXELS, patch=lie, compress=compress)).code == QuarantineCode.TRUNCATED


def test_every_cut_of_a_plain_file_is_told(phantoms: Any) -> None:
    plain = phantoms.nifti(VOXELS, compress=False)
    codes = {cut: refusal(plain[:cut]).code for cut in (0, 1, 3, 4, 200, 347, 348, 351, 352, 353, len(plain) - 1)}
    assert codes.pop(0) == QuarantineCode.EMPTY
    assert codes.pop(1) == codes.pop(3) == QuarantineCode.NOT_NIFTI
    assert set(codes.values()) == {QuarantineCode.TRUNCATED}


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_every_cut_of_a_gzip_file_is_told(phantoms: Any, share: float) -> None:
    data = phantoms.nifti(VOXELS)
    cut = 2 + int(share * (len(data) - 2))
    assert refusal(data[:cut]).code == QuarantineCode.TRUNCATED


@given(share=st.floats(0.02, 1, exclude_max=True), bit=st.integers(0, 7))
@example(share=0.9993256, bit=2)
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_in_the_stream_is_noticed(phantoms: Any, share: float, bit: int) -> None:
    data = bytearray(phantoms.nifti(VOXELS))
    whole, place = gzip.decompress(data), int(share * len(data))
    data[place] ^= 1 << bit
    with suppress(EOFError, OSError, zlib.error):
        if gzip.decompress(data) == whole:  # one of the bits that fill the stream's last byte and mean nothing
            assert opened(bytes(data)).voxels(0).tobytes(order="F") == VOXELS.tobytes(order="F")
            return
    codes = {
        QuarantineCode.GZIP_CORRUPT,
        QuarantineCode.TRUNCATED,
        QuarantineCode.HEADER_INVALID,
        QuarantineCode.TOO_LARGE,
    }
    assert refusal(bytes(data)).code in codes


def test_wrong_length_in_the_trailer_is_corrupt(phantoms: Any) -> None:
    data = phantoms.nifti(VOXELS)
    for length in (0, 5, 2**32 - 1):
        assert refusal(data[:-4] + struct.pack("<I", length)).code == QuarantineCode.GZIP_CORRUPT


def test_wrong_checksum_is_corrupt(phantoms: Any) -> None:
    data = bytearray(phantoms.nifti(VOXELS))
    data[-6] ^= 1
    assert refusal(bytes(data)).code == QuarantineCode.GZIP_CORRUPT


def test_gzip_of_something_else() -> None:
    assert refusal(gzip.compress(b"")).code == QuarantineCode.EMPTY
    assert refusal(gzip.compress(b"tiny")).code == QuarantineCode.NOT_NIFTI
    assert refusal(gzip.compress(bytes(range(256)) * 9)).code == QuarantineCode.NOT_NIFTI


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 84977953\n"
S3_ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, ["git-lfs pointer", "git lfs pull"]),
        (b"/annex/objects/SHA256E-s1048576--0a1b.nii.gz\n", ["git-annex pointer", "git annex get"]),
        (b"../.git/annex/objects/w8/Kq/SHA256E-s10--0a.nii.gz/SHA256E-s10--0a.nii.gz", ["git-annex pointer"]),
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML><html><body>404 Not ScoredRow", ["HTML page", "fetch it again"]),
        (b"<!-- proxy -->\n<Html lang=en>", ["HTML page"]),
        (S3_ERROR, ["XML error", "fetch it again"]),
        (b'<?xml version="1.0"?><VTKFile/>', ["XML file"]),
        (b'{"message": "rate limit"}', ["JSON", "fetch it again"]),
        (b"\0" * 128 + b"DICM" + b"\0" * 400, ["DICOM", "unpack it"]),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", ["DICOM"]),
        (gzip.compress(b"x" * 1000, mtime=0), ["gzip stream within"]),
        (b"\x28\xb5\x2f\xfd\x24\0", ["zstd", "store it as .nii"]),
        (b"BZh91AY&SY", ["bzip2"]),
        (b"\xfd7zXZ\0\0\4", ["xz file"]),
        (b"PK\x03\x04\x14\0", ["zip archive"]),
        (b"case.nii" + b"\0" * 249 + b"ustar\x0000", ["tar archive"]),
        (b"\x89PNG\r\n\x1a\n", ["PNG", "picture"]),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", ["JPEG"]),
        (b"\x89HDF\r\n\x1a\n", ["HDF5", "convert"]),
        (b"ObjectType = Image\nNDims = 3\n", ["MetaImage"]),
        (b"NRRD0004\ntype: short\n", ["NRRD"]),
        (struct.pack(">7i", 1, 256, 256, 256, 1, 0, 0), ["MGH"]),
        (b"Dear colleague, the scans are", ["it is text", "Dear colleague"]),
        (bytes(range(200, 240)), ["begins with"]),
    ],
)  # fmt: skip
def test_what_lies_under_a_nifti_name_is_told(content: bytes, words: list[str]) -> None:
    """C15: as it is and inside gzip, the reason says what the object is and what to do."""
    for data in (content, gzip.compress(content)):
        if data is content and content.startswith(b"\x1f\x8b"):
            continue  # a single layer of gzip is how NIfTI is stored
        error = refusal(data)
        assert error.code == QuarantineCode.NOT_NIFTI
        assert not [word for word in words if word not in error.reason], error.reason
        assert len(error.reason) < 200
        assert error.reason.isprintable()


def test_a_bomb_behind_a_small_header_is_followed_only_so_far(phantoms: Any) -> None:
    bomb = gzip.compress(phantoms.nifti(VOXELS, compress=False) + b"\0" * (200 * MIB), 9)
    tracemalloc.start()
    error = refusal(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == QuarantineCode.TOO_LARGE
    assert peak < 80 * MIB


def test_only_the_size_limit_bounds_what_compresses_well(phantoms: Any) -> None:
    """A9: 1:200 and more is honest below the limit; above it only the header is read, whatever the stream gives."""
    head = phantoms.nifti(VOXELS, compress=False, patch={42: struct.pack("<3h", 256, 256, 520)})[:352]
    size = 256 * 256 * 520 * 2
    data = gzip.compress(head + b"\0" * size, 1)
    assert size > 200 * len(data)
    assert opened(data, Limits(max_voxels_bytes=size)).shape == (256, 256, 520)
    tracemalloc.start()
    error = refusal(data, Limits(max_voxels_bytes=size - 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == QuarantineCode.TOO_LARGE
    assert peak < MIB


def test_more_than_the_stream_can_hold_is_refused_before_memory_is_taken(phantoms: Any) -> None:
    lie = {42: struct.pack("<3h", 1000, 1000, 1000)}
    error = refusal(phantoms.nifti(VOXELS, patch=lie))
    assert (error.code, "at most" in error.reason) == (QuarantineCode.TRUNCATED, True)


def test_size_limit_is_on_all_time_points(phantoms: Any) -> None:
    series = phantoms.nifti(np.stack([VOXELS] * 4, axis=3))
    assert refusal(series, Limits(max_voxels_bytes=2 * VOXELS.nbytes)).code == QuarantineCode.TOO_LARGE
    assert opened(series, Limits(max_voxels_bytes=4 * VOXELS.nbytes)).time_points == 4


def with_extension(phantoms: Any, size: int, room: int, flag: bytes = b"\1\0\0\0") -> bytes:
    plain = phantoms.nifti(VOXELS, compress=False, patch={108: phantoms.f32(352 + room), 348: flag})
    extension = (struct.pack("<2i", size, 4) + b"e" * 10_000)[:room]
    return bytes(plain[:352] + extension + plain[352:])


def test_extensions_are_stepped_over(phantoms: Any) -> None:
    assert np.array_equal(opened(with_extension(phantoms, 32, 32)).voxels(0), VOXELS)
    assert np.array_equal(opened(with_extension(phantoms, 10**9, 64, flag=b"\0\0\0\0")).voxels(0), VOXELS)


@pytest.mark.parametrize("size", [-16, 4, 48, 2**31 - 1])
def test_an_extension_that_claims_the_voxels_is_refused(phantoms: Any, size: int) -> None:
    error = refusal(with_extension(phantoms, size, 32))
    assert (error.code, "extension" in error.reason) == (QuarantineCode.HEADER_INVALID, True)


@given(data=st.binary(min_size=1, max_size=5000), sizes=st.lists(st.integers(1, 900), max_size=8))
@settings(max_examples=60, deadline=None)
def test_stepwise_inflating_is_exact_up_to_any_bound(data: bytes, sizes: list[int]) -> None:
    cuts = [0, *np.cumsum(sizes).tolist()]
    packed = b"".join(gzip.compress(data[a:b]) for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True))
    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(content_module, "_CHUNK_BYTES", 13)
        for bound in (1, 100, len(data), len(data) + 1):
            content, end = inflate_up_to(packed, bound)
            assert content == data[:bound]
            assert end is (End.BOUND if bound <= len(data) else End.DONE)


@given(st.binary(max_size=3000))
@settings(max_examples=100, deadline=None)
def test_inflate_returns_bounded_bytes_or_says_what_is_wrong(junk: bytes) -> None:
    try:
        content = inflate(b"\x1f\x8b" + junk, 1000, 10)
    except VolumeError as error:
        assert error.reason  # noqa: PT017  # either end is right
    else:
        assert len(content) <= 1000 + 16 * 2**20
