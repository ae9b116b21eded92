"""Reading the first bytes of DICOM objects: every syntax, cut anywhere, and what is no image of a volume."""

from __future__ import annotations

import random
import struct
import time
import zlib
from pathlib import Path

import pytest

from medret.archive.dicom_head import HEAD_BYTES, DicomHead, is_uid, kind_of, read_head
from tests.dicom_bytes import CT, EXPLICIT, element, file_of

DICOM = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"

SERIES = "1.2.826.0.1.3680043.8.498.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
HEAD = DicomHead(SERIES, CT, "CT", ("ORIGINAL", "PRIMARY", "AXIAL"), "Thorax 1.0")
VALUES = [
    (0x0008, 0x0008, b"CS", b"ORIGINAL\\PRIMARY\\AXIAL"),
    (0x0008, 0x0016, b"UI", CT.encode()),
    (0x0008, 0x0060, b"CS", b"CT"),
    (0x0008, 0x103E, b"LO", b"Thorax 1.0"),
    (0x0020, 0x000E, b"UI", SERIES.encode()),
]


def data_set(more: bytes = b"", *, explicit: bool = True, order: str = "<") -> bytes:
    """VALUES, with `more` before the series."""
    *first, last = (element(*each, explicit=explicit, order=order) for each in VALUES)
    return b"".join([*first, more, last])


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


FILES = {
    "explicit": file_of(data_set(), EXPLICIT),
    "implicit": file_of(data_set(explicit=False), IMPLICIT),
    "big endian": file_of(data_set(order=">"), BIG_ENDIAN),
    "deflated": file_of(deflated(data_set()), DEFLATED),
    "without preamble, explicit": data_set(),
    "without preamble, implicit": data_set(explicit=False),
    "without preamble, with meta information": file_of(data_set(), EXPLICIT)[132:],
}


@pytest.mark.parametrize("name", FILES)
def test_every_syntax_is_read(name: str) -> None:
    assert read_head(FILES[name] + bytes(1000)) == HEAD


@pytest.mark.parametrize("name", FILES)
def test_a_cut_object_is_dicom_as_soon_as_it_says_so_and_never_of_another_series(name: str) -> None:
    for length in range(len(FILES[name])):
        head = read_head(FILES[name][:length])
        if name.startswith("without"):
            assert head is None or is_uid(head.series_uid) or is_uid(head.sop_class_uid)
        else:
            assert (head is None) == (length < 132)
        assert head is None or SERIES.startswith(head.series_uid)


def sequence(content: bytes, vr: bytes = b"SQ") -> bytes:
    """A sequence of undefined length, with one item of undefined length."""
    return (
        struct.pack("<HH", 0x0008, 0x1140) + vr + b"\0\0" + b"\xff" * 4
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content
        + struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )  # fmt: skip


def test_what_stands_in_sequences_and_private_groups_is_not_taken() -> None:
    other = element(0x0020, 0x000E, b"UI", b"1.2.3")
    for more in (
        element(0x0008, 0x1140, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(other)) + other),
        sequence(other),
        sequence(sequence(other) + other),
        sequence(element(0x0020, 0x000E, b"UI", b"1.2.3", explicit=False), b"UN"),
        element(0x0009, 0x1001, b"OB", bytes(40_000)),
    ):
        assert read_head(file_of(data_set(more), EXPLICIT)) == HEAD


def test_what_lies_beyond_the_first_bytes_is_unknown() -> None:
    far = file_of(data_set(element(0x0009, 0x1001, b"OB", bytes(HEAD_BYTES))), EXPLICIT)
    assert read_head(far) == DicomHead("", CT, "CT", HEAD.image_type, HEAD.description)


@pytest.mark.parametrize(
    "data",
    [b"", b"DICM", bytes(200), b"\x08\x00", b"\x02\x00\x00\x00UL\x04\x00", b"\x5c\x01\x00\x00" + bytes(348), b"II*\x00",
     b"\x08\x00\x08\x00CS\x04\x00ABCD", b"\x1f\x8b\x08\x00", b"# comment\n" * 100, b"\x89PNG\r\n\x1a\n" + bytes(400)],
)  # fmt: skip
def test_other_files_are_not_dicom(data: bytes) -> None:
    assert read_head(data) is None


def test_any_bytes_give_an_answer_soon() -> None:
    generator = random.Random(0)
    started = time.monotonic()
    for file in FILES.values():
        for _ in range(100):
            mutated = bytearray(file + bytes(200))
            for _ in range(generator.randint(1, 20)):
                mutated[generator.randrange(len(mutated))] = generator.randrange(256)
            read_head(bytes(mutated))
    read_head(bytes(128) + b"DICM" + b"\x08\x00\x00\x00UL\x00\x00" * 10_000_000)
    assert time.monotonic() - started < 5


def test_a_dicomdir_is_known_by_its_own_group() -> None:
    directory = element(0x0004, 0x1130, b"CS", b"DISC") + element(0x0004, 0x1200, b"UL", bytes(4))
    head = read_head(file_of(directory, EXPLICIT))
    assert head is not None
    assert kind_of(head) == "other"


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [("2", "image"), ("2.1", "image"), ("4", "image"), ("4.1", "image"), ("128", "image"), ("20", "image"),
     ("13.1.3", "image"), ("7", "other"), ("7.2", "other"), ("11.1", "other"), ("88.22", "other"), ("481.3", "other"),
     ("66.4", "other"), ("104.1", "other"), ("9.1.1", "other"), ("1", "other"), ("6.1", "other")],
)  # fmt: skip
def test_the_sop_class_decides_what_is_an_image_of_a_volume(sop_class: str, kind: str) -> None:
    assert kind_of(DicomHead(SERIES, f"1.2.840.10008.5.1.4.1.1.{sop_class}")) == kind


def test_private_classes_are_left_out_and_missing_ones_are_not() -> None:
    assert kind_of(DicomHead(SERIES, "1.3.12.2.1107.5.9.1")) == "other"
    assert kind_of(DicomHead(SERIES)) == "image"


@pytest.mark.parametrize(
    ("image_type", "description", "kind"),
    [(("ORIGINAL", "PRIMARY", "LOCALIZER"), "", "localizer"), ((), "3-plane Localizer", "localizer"),
     (("ORIGINAL", "PRIMARY", "M"), "AAHead_Scout", "localizer"), ((), "Topogram  0.6  T20f", "localizer"),
     (("ORIGINAL", "PRIMARY", "AXIAL"), "Thorax", "image"), (("DERIVED", "SECONDARY", "MPR"), "T1 MPRAGE", "image"),
     ((), "Boyscouts", "image")],
)  # fmt: skip
def test_localizers_are_known_by_their_type_or_description(
    image_type: tuple[str, ...], description: str, kind: str
) -> None:
    assert kind_of(DicomHead(SERIES, CT, "CT", image_type, description)) == kind


def test_files_that_pydicom_writes_are_read(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    for syntax, (implicit, little) in {
        IMPLICIT: (True, True), EXPLICIT: (False, True), BIG_ENDIAN: (False, False), DEFLATED: (False, True),
    }.items():  # fmt: skip
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CT
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{SERIES}.1"
        ds.ImageType, ds.Modality, ds.SeriesInstanceUID = list(HEAD.image_type), "CT", SERIES
        ds.SeriesDescription, ds.PatientName, ds.PixelData = HEAD.description, "Müller^Jörg", bytes(100)
        ds["PixelData"].VR = "OW"
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ReferencedImageSequence = [pydicom.Dataset()]
        ds.ReferencedImageSequence[0].SeriesInstanceUID = "1.2.3"
        pydicom.dcmwrite(tmp_path / "one", ds, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
        assert read_head((tmp_path / "one").read_bytes()) == HEAD


@pytest.mark.skipif(not DICOM.is_dir(), reason="the real series are not beside the checkout")
def test_real_series_say_what_pydicom_reads_in_them() -> None:
    pydicom = pytest.importorskip("pydicom")
    for folder in (path for path in sorted(DICOM.iterdir()) if path.is_dir()):
        for path in sorted(folder.iterdir())[:3]:
            found = pydicom.dcmread(path, stop_before_pixels=True)
            head = read_head(path.read_bytes()[:HEAD_BYTES])
            assert head is not None
            assert (head.series_uid, head.sop_class_uid) == (found.SeriesInstanceUID, found.SOPClassUID)
            assert (head.modality, head.image_type) == (found.Modality, tuple(found.ImageType))
            assert kind_of(head) == "image"
