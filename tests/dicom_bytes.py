"""DICOM objects made byte by byte: as much of them as a listing reads."""

from __future__ import annotations

import struct
from pathlib import Path

CT, MR, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.22"
EXPLICIT = "1.2.840.10008.1.2.1"


def element(group: int, number: int, vr: bytes, value: bytes, *, explicit: bool = True, order: str = "<") -> bytes:
    """One element."""
    value += b"\0" if len(value) % 2 and vr == b"UI" else b" " * (len(value) % 2)
    tag = struct.pack(f"{order}HH", group, number)
    if not explicit:
        return tag + struct.pack(f"{order}I", len(value)) + value
    if vr in (b"SQ", b"UN", b"OB", b"OW"):
        return tag + vr + b"\0\0" + struct.pack(f"{order}I", len(value)) + value
    return tag + vr + struct.pack(f"{order}H", len(value)) + value


def file_of(content: bytes, syntax: str = EXPLICIT) -> bytes:
    """A file with preamble and meta information. content: its data set."""
    meta = element(0x0002, 0x0010, b"UI", syntax.encode())
    return bytes(128) + b"DICM" + element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta))) + meta + content


def instance(
    series: str, number: int = 1, *, sop_class: str = CT, image_type: str = "ORIGINAL\\PRIMARY", patient: str = ""
) -> bytes:
    """An instance of a series without pixels."""
    return file_of(
        element(0x0008, 0x0008, b"CS", image_type.encode())
        + element(0x0008, 0x0016, b"UI", sop_class.encode())
        + element(0x0008, 0x0018, b"UI", f"{series}.{number}".encode())
        + element(0x0008, 0x0060, b"CS", {CT: b"CT", MR: b"MR"}.get(sop_class, b"OT"))
        + (element(0x0010, 0x0020, b"LO", patient.encode()) if patient else b"")
        + element(0x0020, 0x000E, b"UI", series.encode())
        + element(0x0020, 0x0013, b"IS", str(number).encode())
    )


def write_series(folder: Path, series: str, count: int, name: str = "{:03}.dcm", first: int = 1) -> None:
    """Write a series of `count` instances."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / name.format(number)).write_bytes(instance(series, number))
