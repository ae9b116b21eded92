"""The values of DICOM pixels: scaling, bits, padding, photometric interpretation, compressed streams, and damage."""

from __future__ import annotations

import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGLosslessSV1

from medret.errors import MissingPackageError, QuarantineCode, VolumeError
from medret.recipe import SliceRecipe
from medret.volume import Limits, Part, read_volume
from medret.volume.content import MIB
from medret.volume.dicom.pixels import coded_size
from medret.volume.open import VolumeSource, open_volume
from medret.volume.stored import Scaling, StoredVolume
from tests import dicom_phantoms as make


def body(seed: int = 0, shape: tuple[int, int, int] = (24, 20, 9)) -> NDArray[np.int16]:
    """Hounsfield units of a round body in air."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    noise = np.random.default_rng(seed).integers(-20, 20, shape)
    tissue = np.where(y < -0.3, -100, np.where(x > 0.4, 600, 40)) + noise
    return np.where(x**2 + y**2 < 0.7, tissue, -1000 + noise // 4).astype(np.int16)


def opened(data_sets: list[Dataset], syntax: str = "explicit") -> StoredVolume:
    return open_volume(make.parts_of(data_sets, syntax), Limits())


def refusal(parts: tuple[Part, ...], limits: Limits | None = None) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        open_volume(parts, limits or Limits()).voxels(0)
    return caught.value


def grey(data_sets: list[Dataset], **given: Any) -> NDArray[np.uint8]:
    return read_volume(make.parts_of(data_sets), "id", SliceRecipe(slices="all"), [24], **given).pixels[24]


def test_a_uniform_rescale_stays_beside_the_stored_values() -> None:
    stored = opened(make.single_frames((body() + 1024).astype(np.uint16), RescaleSlope=1, RescaleIntercept=-1024))
    assert stored.dtype == np.uint16
    assert stored.scaling == Scaling(1, -1024)
    assert np.array_equal(stored.scaling.real(stored.voxels(0)), body())


def test_a_rescale_that_varies_by_slice_gives_real_values() -> None:
    data_sets = make.single_frames(body())
    for number, data in enumerate(data_sets):
        data.RescaleSlope, data.RescaleIntercept = 0.5 + number / 8, number
    stored = opened(data_sets)
    assert stored.dtype == np.float32
    factors = 0.5 + np.arange(9) / 8
    assert np.allclose(stored.voxels(0), body() * factors + np.arange(9))


def test_signed_and_unsigned_slices_are_one_volume() -> None:
    data_sets = make.single_frames(body())
    unsigned = make.single_frames(np.full((24, 20, 9), 40000, np.uint16))
    unsigned[4].InstanceNumber = 5
    stored = opened([*data_sets[:4], unsigned[4], *data_sets[5:]])
    assert stored.dtype == np.int32
    assert (stored.voxels(0)[:, :, 4] == 40000).all()
    assert np.array_equal(stored.voxels(0)[:, :, 3], body()[:, :, 3])


@pytest.mark.parametrize("high", [11, 15])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "RLE"])
def test_bits_beside_the_stored_ones_are_no_part_of_the_value(high: int, syntax: str) -> None:
    values = np.clip(body(), -2048, 2047)
    bits = (values.astype(np.int32) & 0xFFF) << (high - 11)
    overlay = 0x3000 if high == 11 else 0x000D
    data_sets = make.single_frames((bits | overlay).astype(np.uint16))
    for data in data_sets:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, high, 1
    assert np.array_equal(opened(data_sets, syntax).voxels(0), values)


def test_eight_bits_in_big_endian_words_are_swapped_back() -> None:
    values = np.arange(24 * 20, dtype=np.uint8).reshape(24, 20, 1)
    data = make.single_frames(values)[0]
    data.PixelData = np.frombuffer(data.PixelData, np.uint16).byteswap().tobytes()
    data["PixelData"].VR = "OW"
    assert np.array_equal(open_volume((Part("a", make.encoded(data, "big endian")),), Limits()).voxels(0), values)


def test_monochrome1_is_turned() -> None:
    values = (body() + 1024).astype(np.uint16)
    data_sets = make.single_frames(
        4095 - values, modality="MR", BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(opened(data_sets).voxels(0), values)
    signed = make.single_frames(~body(), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(opened(signed).voxels(0), body())


@pytest.mark.parametrize("padding", [-2000, 32000])
def test_padding_becomes_the_darkest_value(padding: int) -> None:
    values = body()
    padded = values.copy()
    padded[:3] = padded[-3:] = padding
    stored = opened(make.single_frames(padded, PixelPaddingValue=padding)).voxels(0)
    assert (stored[:3] == values[3:-3].min()).all()
    assert np.array_equal(stored[3:-3], values[3:-3])
    relative = make.single_frames(padded, modality="MR", PixelPaddingValue=padding)
    plain = values.copy()
    plain[:3] = plain[-3:] = values[3:-3].min()
    assert np.array_equal(grey(relative), grey(make.single_frames(plain, modality="MR")))


def test_padding_may_be_a_range_and_of_another_sign() -> None:
    padded = body()
    padded[:2], padded[2:4] = -3000, -2000
    data_sets = make.single_frames(padded)
    for data in data_sets:
        data.add_new("PixelPaddingValue", "US", 65536 - 3000)
        data.add_new("PixelPaddingRangeLimit", "US", 65536 - 2000)
    assert opened(data_sets).voxels(0).min() == body()[4:].min()


@pytest.mark.parametrize("padding", [0, -1040])
def test_padding_among_the_other_values_or_hardly_below_them_stays(padding: int) -> None:
    values = body()
    values[:3] = padding
    assert np.array_equal(opened(make.single_frames(values, PixelPaddingValue=padding)).voxels(0), values)


def test_ct_is_shown_as_its_nifti_twin_is_without_a_label(phantoms: Any) -> None:
    data_sets = make.single_frames((body() + 1024).astype(np.uint16), RescaleSlope=1, RescaleIntercept=-1024)
    ours = read_volume(make.parts_of(data_sets), "id", SliceRecipe(), [32])
    theirs = read_volume(phantoms.nifti(body(), make.affine_of()), "id", SliceRecipe(), [32])
    assert ours.facts.intensity == theirs.facts.intensity == "hu:soft_tissue"
    assert (ours.facts.modality_source, theirs.facts.modality_source) == ("dicom", "guessed")
    assert np.array_equal(ours.pixels[32], theirs.pixels[32])
    assert np.allclose([ref.position_mm for ref in ours.slices], [ref.position_mm for ref in theirs.slices], atol=1e-4)
    labelled = read_volume(make.parts_of(data_sets), "id", SliceRecipe(), [32], modality="MRI")
    assert (labelled.facts.intensity, labelled.facts.modality_source) == ("percentile", "label")


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colour_is_refused(photometric: str) -> None:
    data_sets = make.single_frames(body())
    for data in data_sets:
        data.PhotometricInterpretation = photometric
    error = refusal(make.parts_of(data_sets))
    assert error.code == QuarantineCode.DATATYPE_UNSUPPORTED
    assert photometric in error.reason
    mixed = opened([*make.single_frames(body())[:5], *data_sets[5:]])
    assert mixed.series is not None
    assert mixed.series.left_out == {"colour": 4}


def test_jpeg_lossless_and_baseline() -> None:
    y, x = np.mgrid[:16, :18]
    data = make.single_frames(np.zeros((18, 16, 1), np.int16))[0]
    part = Part("a", make.with_stream(data, JPEGLosslessSV1, make.JPEG_LOSSLESS))
    voxels = open_volume((part,), Limits()).voxels(0)
    assert np.array_equal(voxels[:, :, 0].T, (x * 37 + y * y * 11) % 3000 - 1000)

    picture, stream = (x * 9 + y * 5).astype(np.uint8), io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=98)
    data = make.single_frames(np.zeros((18, 16, 1), np.uint8))[0]
    part = Part("a", make.with_stream(data, "1.2.840.10008.1.2.4.50", stream.getvalue()))
    voxels = open_volume((part,), Limits()).voxels(0)
    assert np.abs(voxels[:, :, 0].T.astype(int) - picture).max() <= 4


@pytest.mark.parametrize("syntax", ["RLE", "JPEG 2000", "JPEG-LS", "explicit", "deflated", "big endian"])
def test_enhanced_frames_in_every_kind_of_syntax(syntax: str) -> None:
    voxels = body(shape=(40, 36, 9)).astype(np.int32) + 1024
    data = make.enhanced(voxels.astype(np.uint16))
    stored = open_volume((Part("a", make.encoded(data, syntax)),), Limits())
    assert np.array_equal(stored.voxels(0), voxels)


def test_frames_are_found_without_an_offset_table_and_by_an_extended_one() -> None:
    data = pydicom.dcmread(io.BytesIO(make.encoded(make.enhanced(body().astype(np.uint16)), "RLE")))
    frames = list(generate_frames(data.PixelData, number_of_frames=9))
    for table in (False, True):
        data.PixelData = encapsulate(frames, has_bot=table)
        assert np.array_equal(open_volume((Part("a", _saved(data)),), Limits()).voxels(0), body().astype(np.uint16))
    data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = pydicom.encaps.encapsulate_extended(
        frames
    )
    assert np.array_equal(open_volume((Part("a", _saved(data)),), Limits()).voxels(0), body().astype(np.uint16))


def _saved(data: Dataset) -> bytes:
    stream = io.BytesIO()
    data.save_as(stream)
    return stream.getvalue()


def test_a_stream_larger_than_its_header_says_is_not_decoded() -> None:
    bomb = bytearray(make.JPEG_LOSSLESS)
    at = bomb.index(b"\xff\xc3") + 5
    bomb[at : at + 4] = struct.pack(">HH", 65000, 65000)
    data = make.single_frames(np.zeros((18, 16, 1), np.int16))[0]
    error = refusal((Part("a.dcm", make.with_stream(data, JPEGLosslessSV1, bytes(bomb))),))
    assert error.code == QuarantineCode.INSTANCE_DAMAGED
    assert "65000" in error.reason


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (make.JPEG_LOSSLESS, (16, 18, 1)),
        (b"\xff\xd8\xff\xff\xf7\0\x0b\x08\0\x20\0\x40\x03", (32, 64, 3)),
        (b"\xff\xd8\xff\xda\0\0\0\0\0\0\0\0\0\0", None),
        (b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 70, 50, 6, 2, 9, 9, 0, 0, 1), (48, 64, 1)),
        (b"\xff\x4f\xff\x51\0", None),
        (b"\xff\xd8" + b"\xff\xe0\0\x02" * 3, None),
        (b"", None),
    ],
)
def test_the_size_that_a_stream_states(stream: bytes, size: tuple[int, int, int] | None) -> None:
    assert coded_size(stream) == size


def test_real_numbers_as_pixels_are_refused() -> None:
    data = make.single_frames(body().astype(np.int32))[0]
    data.FloatPixelData = data.PixelData
    del data.PixelData
    assert refusal((Part("a", make.encoded(data)),)).code == QuarantineCode.DATATYPE_UNSUPPORTED


def test_without_pydicom_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make.parts_of(make.single_frames(body()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"medret\[dicom\]"):
        open_volume(parts, Limits())


def test_an_unknown_syntax_is_named() -> None:
    data = make.single_frames(body())[0]
    error = refusal((Part("a", make.with_stream(data, "1.2.840.10008.1.2.4.102", b"\0" * 64)),))
    assert error.code == QuarantineCode.SYNTAX_UNSUPPORTED
    assert "MPEG-4" in error.reason


def _cut(data: bytes) -> bytes:
    return data[:-100]


def _without(keyword: str, data: bytes) -> bytes:
    found = pydicom.dcmread(io.BytesIO(data))
    delattr(found, keyword)
    return _saved(found)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "noise": lambda data: np.random.default_rng(0).bytes(500),
    "a page": lambda data: b"<!DOCTYPE html><html>Not found</html>",
    "cut in the pixels": _cut,
    "cut in the header": lambda data: data[:700],
    "cut before the header": lambda data: data[:140],
    "without rows": lambda data: _without("Rows", data),
    "without pixels": lambda data: _without("PixelData", data),
    "without bits": lambda data: _without("BitsAllocated", data),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("syntax", ["explicit", "RLE"])
def test_a_damaged_instance_is_named(kind: str, syntax: str) -> None:
    parts = list(make.parts_of(make.single_frames(body()), syntax))
    parts[3] = Part("series/IM0004.dcm", DAMAGE[kind](parts[3].data))
    error = refusal(tuple(parts))
    assert error.code == QuarantineCode.INSTANCE_DAMAGED, error
    assert "series/IM0004.dcm" in error.reason


def test_a_damaged_compressed_stream_is_named() -> None:
    for syntax in ("RLE", "JPEG-LS", "JPEG 2000", "deflated"):
        parts = list(make.parts_of(make.single_frames(body(shape=(40, 36, 9)).clip(0).astype(np.uint16)), syntax))
        damaged = bytearray(parts[3].data)
        damaged[-300:] = bytes(300)
        parts[3] = Part("IM0004", bytes(damaged))
        error = refusal(tuple(parts))
        assert error.code == QuarantineCode.INSTANCE_DAMAGED
        assert "IM0004" in error.reason


def test_a_text_beside_the_images_is_left_out() -> None:
    parts = (Part("VERSION_OF_VIEWER", b"Viewer 3.1\n"), *make.parts_of(make.single_frames(body())))
    stored = open_volume(parts, Limits())
    assert stored.series is not None
    assert stored.series.left_out == {"not DICOM": 1}


def test_a_deflated_bomb_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medret.volume.dicom.instances._DEFLATED_EXTRA_BYTES", MIB)
    data = make.single_frames(body())[0]
    head = make.encoded(data, "deflated")
    length = struct.unpack_from("<I", head, 140)[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = head[: 144 + length] + deflater.compress(bytes(4 * MIB)) + deflater.flush()
    assert len(bomb) < MIB
    assert refusal((Part("a", bomb),), Limits(max_voxels_bytes=MIB)).code == QuarantineCode.TOO_LARGE


def zipped(parts: tuple[Part, ...], names: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in parts:
            archive.writestr(f"../../case/{part.name}", part.data)
        for name, data in names.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(parts: tuple[Part, ...], mode: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for part in parts:
            member = tarfile.TarInfo(f"/etc/{part.name}")
            member.size = len(part.data)
            archive.addfile(member, io.BytesIO(part.data))
        link = tarfile.TarInfo("link.dcm")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return stream.getvalue()


def test_zips_and_tars_of_a_series_are_that_series() -> None:
    parts = make.parts_of(make.single_frames(body()))
    others = {"__MACOSX/case/0001.dcm": b"x", "case/.DS_Store": b"x", "case/report.pdf": b"x", "case/DICOMDIR": b"x"}
    for data in (zipped(parts, others), tarred(parts, "w"), tarred(parts, "w:gz"), parts[0].data):
        stored = open_volume(data, Limits())
        expected = body()[:, :, :1] if data is parts[0].data else body()
        assert np.array_equal(stored.voxels(0), expected)


def test_zips_and_tars_are_bounded_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make.parts_of(make.single_frames(body()))
    archive = zipped(parts, {})
    assert refused(archive[:-200]).code == QuarantineCode.BUNDLE_CORRUPT
    broken = bytearray(archive)
    broken[200:260] = bytes(60)
    assert refused(bytes(broken)).code == QuarantineCode.BUNDLE_CORRUPT
    assert refused(tarred(parts, "w")[:4000]).code == QuarantineCode.BUNDLE_CORRUPT
    bomb = zipped((), {f"{number}.dcm": bytes(MIB) for number in range(20)})
    assert len(bomb) < MIB
    monkeypatch.setattr("medret.volume.open._HEADERS_BYTES", 16 * MIB)
    assert refused(bomb, Limits(max_voxels_bytes=MIB)).code == QuarantineCode.TOO_LARGE
    assert refused(zipped((), {"scan.nii.gz": b"x"})).code == QuarantineCode.NOT_NIFTI


def refused(data: bytes, limits: Limits | None = None) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        open_volume(data, limits or Limits())
    return caught.value


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_can_only_be_inflated_whole_is_refused(method: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("1.dcm", bytes(MIB))
    error = refused(stream.getvalue())
    assert (error.code, f"by method {method}" in error.reason) == (QuarantineCode.BUNDLE_CORRUPT, True)


def test_no_more_of_a_member_is_inflated_than_it_declares() -> None:
    size = struct.pack("<I", 16 * MIB)
    bomb = zipped((), {"1.dcm": bytes(16 * MIB)}).replace(size, struct.pack("<I", 10))
    tracemalloc.start()
    try:
        assert refused(bomb).code == QuarantineCode.BUNDLE_CORRUPT
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_frames_and_bundles_beyond_the_limit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make.parts_of(make.single_frames(body()))
    archive = zipped(parts, {})
    (tmp_path / "a.zip").write_bytes(archive)
    monkeypatch.setattr("medret.volume.open._JUDGED_FIRST_BYTES", 100)
    monkeypatch.setattr("medret.volume.open._HEADERS_BYTES", 0)
    source = VolumeSource(str(tmp_path / "a.zip"))
    assert source.read(len(archive), Limits(max_voxels_bytes=len(archive))) == archive
    with pytest.raises(VolumeError, match="the limit is"):
        source.read(len(archive), Limits(max_voxels_bytes=len(archive) - 1))
    monkeypatch.setattr("medret.volume.dicom.whole_series._MOST_FRAMES", len(parts))
    assert open_volume(parts, Limits()).shape == body().shape
    monkeypatch.setattr("medret.volume.dicom.whole_series._MOST_FRAMES", len(parts) - 1)
    with pytest.raises(VolumeError, match="frames; the limit is"):
        open_volume(parts, Limits())
