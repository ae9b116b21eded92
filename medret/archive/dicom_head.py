"""What the first bytes of a DICOM object say: which series it belongs to, and whether it is an image of a volume.

A listing reads only these bytes, and needs no library for it. `kind_of` also judges whole data sets, so that what a
listing skips is what a reader drops. The layout of elements is that of DICOM PS3.5, section 7; that of files PS3.10.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "localizer", "other"]

HEAD_BYTES = 64 << 10  # to read of an object: the series stands within a few KiB, behind private groups of the makers

_TAGS = {
    (0x0002, 0x0002): "sop_class_uid",  # of the file's meta information; the one of the data set comes later and wins
    (0x0002, 0x0010): "transfer_syntax_uid",
    (0x0004, 0x1200): "directory",  # only a DICOMDIR has the group 0004
    (0x0008, 0x0008): "image_type",
    (0x0008, 0x0016): "sop_class_uid",
    (0x0008, 0x0060): "modality",
    (0x0008, 0x103E): "description",
    (0x0010, 0x0020): "patient_id",
    (0x0018, 0x0015): "body_part",
    (0x0020, 0x000E): "series_uid",
}
_LAST = max(_TAGS)
_LONGEST_VALUE = 1024  # of these elements

_DEFLATED, _BIG_ENDIAN, _IMPLICIT = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"
_PREAMBLE_BYTES = 128
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {
        b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
        b"ST", b"TM", b"UI", b"UL", b"US",
    }
)  # fmt: skip
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_MOST_UID = 64  # characters

# SOP classes of images that are, or may be, slices of a volume. Projections (CR, DX, MG), ultrasound, microscopy and
# photographs are none, nor are secondary captures, segmentations, presentation states, reports, plans and documents.
_VOLUMETRIC = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in (
        "2", "2.1", "2.2",  # CT, enhanced CT, legacy converted CT
        "4", "4.1", "4.3", "4.4",  # MR, enhanced MR, enhanced colour MR, legacy converted MR
        "5", "20",  # nuclear medicine, retired and current
        "6.2",  # enhanced ultrasound volume
        "13.1.1", "13.1.2", "13.1.3",  # X-ray 3D: angiographic, craniofacial, breast tomosynthesis
        "77.1.5.4",  # ophthalmic tomography
        "128", "128.1", "130",  # PET, legacy converted PET, enhanced PET
    )
)  # fmt: skip
_NUCLEAR_MEDICINE = frozenset({"1.2.840.10008.5.1.4.1.1.5", "1.2.840.10008.5.1.4.1.1.20"})
_PROJECTIONS = frozenset({"STATIC", "DYNAMIC", "GATED", "WHOLE BODY", "TOMO", "GATED TOMO"})  # others begin with RECON
_LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
_LOCALIZER = re.compile(r"(?<![a-z])(locali[sz]ers?|scout|topogramm?|surview|scanogram|3[ _-]?plane[ _-]?loc)(?![a-z])")


@dataclass(frozen=True)
class DicomHead:
    """Elements of a DICOM object; empty where it has none, or where they lie beyond its first bytes.

    image_type: in capitals. description: of the series.
    """

    series_uid: str = ""
    sop_class_uid: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    description: str = ""
    patient_id: str = ""
    body_part: str = ""


def kind_of(head: DicomHead) -> Kind:
    """Whether an object is an image that may be part of a volume, a localizer, or something else.

    An object that does not say its SOP class is taken for an image: its reader reports what is wrong with it.
    """
    if head.sop_class_uid and head.sop_class_uid not in _VOLUMETRIC:
        return "other"
    if head.sop_class_uid in _NUCLEAR_MEDICINE and _PROJECTIONS & set(head.image_type[2:3]):
        return "other"
    if _LOCALIZER_TYPES & set(head.image_type) or _LOCALIZER.search(head.description.lower()):
        return "localizer"
    return "image"


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID: numbers with dots between them."""
    return len(text) <= _MOST_UID and _UID.fullmatch(text) is not None


def read_head(data: bytes) -> DicomHead | None:
    """Read the first bytes of an object, however many there are; None if it is not DICOM.

    DICOM is what has `DICM` at byte 128, and what begins with an element of group 0002 or 0008 and names a SOP class or
    a series. Never raises; the time is in proportion to the number of bytes.
    """
    data = data[:HEAD_BYTES]
    if data[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM":
        return _head(data[_PREAMBLE_BYTES + 4 :])
    if data[:2] not in (b"\x02\x00", b"\x08\x00"):
        return None
    head = _head(data)
    return head if is_uid(head.series_uid) or is_uid(head.sop_class_uid) else None


def _head(data: bytes) -> DicomHead:
    """data: after the preamble, beginning with the meta information or, without one, with the data set."""
    end = 0
    meta: dict[str, str] = {}
    for tag, value, after in _elements(data, explicit=_is_explicit(data), order="<", until=0x0002):
        end = after
        if name := _TAGS.get(tag):
            meta[name] = _text(value)
    rest, syntax = data[end:], meta.get("transfer_syntax_uid", "")
    if syntax == _DEFLATED:
        rest = _inflated(rest)
    order = ">" if syntax == _BIG_ENDIAN else "<"
    explicit = syntax != _IMPLICIT if syntax else _is_explicit(rest)
    found = dict(meta)
    for tag, value, _ in _elements(rest, explicit=explicit, order=order, until=_LAST[0]):
        if (name := _TAGS.get(tag)) == "directory":
            found["sop_class_uid"] = "1.2.840.10008.1.3.10"
        elif name:
            found[name] = _text(value) or found.get(name, "")
    return DicomHead(
        found.get("series_uid", ""),
        found.get("sop_class_uid", ""),
        found.get("modality", "").upper(),
        tuple(each.strip().upper() for each in found.get("image_type", "").split("\\") if each.strip()),
        found.get("description", ""),
        found.get("patient_id", ""),
        found.get("body_part", ""),
    )


def _is_explicit(data: bytes) -> bool:
    """Whether elements name the type (VR) of their value."""
    return data[4:6] in _LONG or data[4:6] in _SHORT


def _elements(data: bytes, *, explicit: bool, order: str, until: int) -> Iterator[tuple[tuple[int, int], bytes, int]]:
    """The elements of a data set up to this group: tag, value and where it ends. What lies in sequences is left out."""
    at, depth = 0, 0
    implicit_from: int | None = None  # depth below which a sequence of unknown type (UN) has no types
    while at + 8 <= len(data):
        group, element = struct.unpack_from(f"{order}HH", data, at)
        tag = (group, element)
        if group > until and not depth:
            return
        vr = data[at + 4 : at + 6]
        at += 8
        if group == _ITEM[0] or not explicit or (implicit_from is not None and depth >= implicit_from):
            (length,) = struct.unpack_from(f"{order}I", data, at - 4)
        elif vr in _LONG:
            if at + 4 > len(data):
                return
            (length,) = struct.unpack_from(f"{order}I", data, at)
            at += 4
        elif vr in _SHORT:
            (length,) = struct.unpack_from(f"{order}H", data, at - 2)
        else:  # no element begins here: the object is damaged
            return
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth = max(0, depth - 1)
            if implicit_from is not None and depth < implicit_from:
                implicit_from = None
        elif length == _UNDEFINED:
            depth += 1
            if vr == b"UN" and explicit and group != _ITEM[0] and implicit_from is None:
                implicit_from = depth
        else:
            if not depth:
                yield tag, data[at : at + min(length, _LONGEST_VALUE)], at + length
            at += length


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0\t\r\n")


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, HEAD_BYTES)
    except zlib.error:
        return b""
