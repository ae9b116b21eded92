"""The instances of a DICOM series that are images: the header of each, checked, and how a Siemens mosaic is divided."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medret.archive.dicom_head import DicomHead, kind_of, read_head
from medret.errors import QuarantineCode, VolumeError
from medret.visible import visible
from medret.volume.content import Limits, Part, describe
from medret.volume.dicom.tags import (
    CSA_CREATOR,
    CSA_HEADER,
    MOSAIC_CREATOR,
    MOSAIC_IMAGES,
    READ_TAGS,
    numbers_of,
    text_of,
    texts_of,
    values_of,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SYNTAX, _DEFLATED = b"\x02\x00\x10\x00UI", b"1.2.840.10008.1.2.1.99"
_META_LENGTH_AT, _META_ELEMENTS_AT = 140, 144  # the value of (0002,0000), and where the elements that it counts begin
_DEFLATED_EXTRA_BYTES = 64 << 20  # of a header, beside the voxels that the limit allows
_MOST_NAMED = 3
_START_BYTES = 4096
_BITS = (8, 16, 32)
_MOST_TAGS, _MOST_ITEMS, _MOST_IMAGES = 128, 4096, 4096  # of a mosaic


@dataclass(frozen=True, eq=False)
class Instance:
    """One image of a series. Its pixels are still encoded.

    name: of the object, for messages. header: the elements before the pixels that medret reads.
    syntax: UID of the transfer syntax. data: the object, from the pixels' element on.
    """

    name: str
    header: Dataset = field(repr=False)
    syntax: str
    data: memoryview = field(repr=False)

    @cached_property
    def uid(self) -> str:
        """The SOPInstanceUID; empty if there is none."""
        return text_of(self.header, "SOPInstanceUID")

    def damaged(self, what: str) -> VolumeError:
        """The error that names this instance."""
        return damaged(self.name, what, self.uid)

    def number(self, keyword: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number of the header; raises VolumeError INSTANCE_DAMAGED if it is missing or out of bounds."""
        value = numbers_of(self.header, keyword)
        found = value[0] if value else default
        if found is None or found != int(found) or not least <= found <= most:
            raise self.damaged(f"{keyword} is {'missing' if found is None else f'{found:g}'}")
        return int(found)

    @cached_property
    def frames(self) -> int:
        """The number of frames that the header declares."""
        return self.number("NumberOfFrames", 0, 1 << 24, default=1) or 1

    @cached_property
    def rows(self) -> int:
        """Rows of each frame."""
        return self.number("Rows", 1, 0xFFFF)

    @cached_property
    def columns(self) -> int:
        """Columns of each frame."""
        return self.number("Columns", 1, 0xFFFF)

    @cached_property
    def is_grey(self) -> bool:
        """Whether a pixel is one grey value."""
        photometric = text_of(self.header, "PhotometricInterpretation") or "MONOCHROME2"
        return photometric.startswith("MONOCHROME") and self.number("SamplesPerPixel", 1, 4, default=1) == 1

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of its stored values; raises VolumeError DATATYPE_UNSUPPORTED too."""
        bits = self.number("BitsAllocated", 1, 64)
        if bits not in _BITS:
            raise VolumeError(
                QuarantineCode.DATATYPE_UNSUPPORTED,
                f"its pixels have {bits} bits, expected {', '.join(map(str, _BITS))}",
            )
        return np.dtype(f"{'i' if self.number('PixelRepresentation', 0, 1, default=0) else 'u'}{bits // 8}")

    @property
    def voxels_bytes(self) -> int:
        """Bytes of its decoded pixels, as the header declares them."""
        return self.rows * self.columns * self.frames * self.dtype.itemsize


def damaged(name: str, what: str, uid: str = "") -> VolumeError:
    """The error for one instance of a series."""
    known = f" ({visible(uid)})" if uid else ""
    return VolumeError(QuarantineCode.INSTANCE_DAMAGED, f"instance {visible(name)}{known}: {what}")


def images_of(parts: Sequence[Part], limits: Limits) -> tuple[list[Instance], Counter[str]]:
    """The images among the objects of a series, and how many other objects there are, by kind.

    Raises VolumeError: INSTANCE_DAMAGED, NO_IMAGE, MIXED_SERIES, TOO_LARGE.
    """
    left_out: Counter[str] = Counter()
    images: list[Instance] = []
    for part in parts:
        if not _is_dicom(part):
            left_out["not DICOM"] += 1
            continue
        instance = parsed(part, limits)
        kind = kind_of(_head_of(instance.header))
        if kind == "image":
            images.append(instance)
        else:
            left_out[kind] += 1
    if not images:
        found = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
        raise VolumeError(
            QuarantineCode.NO_IMAGE,
            f"none of its {len(parts)} objects is an image of a volume: {found} (projections, secondary captures, "
            "segmentations and reports are none)",
        )
    series = Counter(text_of(instance.header, "SeriesInstanceUID") for instance in images)
    if len(series) > 1 and "" in series:
        unknown = next(instance for instance in images if not text_of(instance.header, "SeriesInstanceUID"))
        raise unknown.damaged("it does not say its SeriesInstanceUID, as the others do")
    if len(series) > 1:
        named = ", ".join(f"{visible(uid)} ({count})" for uid, count in series.most_common(_MOST_NAMED))
        raise VolumeError(
            QuarantineCode.MIXED_SERIES,
            f"it holds images of {len(series)} series ({named}), expected one: run medret index again, which then "
            "looks at every object of a folder and indexes each series; unpack a zip or tar",
        )
    return images, left_out


def _is_dicom(part: Part) -> bool:
    """Whether an object is an instance. What was meant to be one and is not raises INSTANCE_DAMAGED."""
    if part.data[128:132] == b"DICM" or read_head(part.data[:_START_BYTES]) is not None:
        return True
    head = bytes(part.data[:272])
    if head and b"\0" not in head and not part.name.lower().endswith((".dcm", ".ima", ".dic", ".dicom")):
        return False  # a text beside the images, such as README or VERSION
    raise damaged(part.name, f"it is not DICOM; {describe(head)}" if head else "it has no bytes")


def _head_of(header: Dataset) -> DicomHead:
    """What a listing would have read."""
    image_type = tuple(text.upper() for text in texts_of(header, "ImageType"))
    names = ("SeriesInstanceUID", "SOPClassUID", "Modality", "SeriesDescription")
    uid, sop_class, modality, description = (text_of(header, name) for name in names)
    return DicomHead(uid, sop_class, modality.upper(), image_type, description)


def parsed(part: Part, limits: Limits) -> Instance:
    """Read the header of an object; raises VolumeError INSTANCE_DAMAGED, TOO_LARGE."""
    import pydicom

    data = part.data
    syntax = ""
    at = data.find(_SYNTAX, 0, _START_BYTES) + len(_SYNTAX) + 2  # after its length
    if data.startswith(_DEFLATED, at):
        data, syntax = _inflated(part, limits), "1.2.840.10008.1.2.1"
    stream = io.BytesIO(data)
    try:
        header = pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=READ_TAGS)
        syntax = syntax or str(header.file_meta.get("TransferSyntaxUID", "")) or _guessed_syntax(header)
    except MemoryError:
        raise
    except Exception as error:  # whatever pydicom raises about these bytes
        raise damaged(part.name, f"its header cannot be read ({type(error).__name__}: {error})") from error
    return Instance(part.name, header, syntax, memoryview(data)[stream.tell() :])


def _guessed_syntax(header: Dataset) -> str:
    """The transfer syntax of an object that does not say it, as pydicom has read it."""
    implicit, little = header.original_encoding
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


def _inflated(part: Part, limits: Limits) -> bytes:
    """The data set of a deflated object, in explicit little endian, without meta information."""
    (length,) = struct.unpack_from("<I", part.data.ljust(_META_ELEMENTS_AT, b"\0"), _META_LENGTH_AT)
    most = limits.max_voxels_bytes + _DEFLATED_EXTRA_BYTES
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(part.data[_META_ELEMENTS_AT + length :], most)
    except zlib.error as error:
        raise damaged(part.name, f"its deflated data set is damaged ({error})") from error
    if stream.unconsumed_tail:
        raise VolumeError(QuarantineCode.TOO_LARGE, f"instance {visible(part.name)} inflates to over {most} bytes")
    return data


@dataclass(frozen=True)
class Mosaic:
    """A Siemens mosaic: one image that holds all slices of a volume, side by side.

    images: slices in the mosaic. rows, columns: of each. normal: (3,) direction in which they follow, or None.
    """

    images: int
    rows: int
    columns: int
    normal: NDArray[np.float64] | None

    def tiles(self) -> list[tuple[int, int]]:
        """The first row and column of each slice in the mosaic: line by line, in a square."""
        across = math.ceil(math.sqrt(self.images))
        return [(self.rows * (image // across), self.columns * (image % across)) for image in range(self.images)]


def mosaic_of(instance: Instance) -> Mosaic | None:
    """How an instance is divided; None if it is no mosaic. Raises VolumeError INSTANCE_DAMAGED."""
    if "MOSAIC" not in (text.upper() for text in texts_of(instance.header, "ImageType")):
        return None
    csa = {}
    if _creator(instance, CSA_CREATOR) == "SIEMENS CSA HEADER":
        data = next(iter(values_of(instance.header, CSA_HEADER)), b"")
        csa = dict(_csa_elements(data)) if isinstance(data, bytes) else {}
    stated = _numbers(csa.get("NumberOfImagesInMosaic", []))
    if not stated and _creator(instance, MOSAIC_CREATOR) == "SIEMENS MR HEADER":
        stated = numbers_of(instance.header, MOSAIC_IMAGES)
    if not stated:
        raise instance.damaged("it is a Siemens mosaic, and does not say of how many slices")
    images = int(stated[0])
    across = math.ceil(math.sqrt(images)) if 0 < images <= _MOST_IMAGES else 0
    if not across or instance.rows % across or instance.columns % across:
        raise instance.damaged(f"{instance.rows} x {instance.columns} pixels are no mosaic of {stated[0]:g} slices")
    normal = np.array(_numbers(csa.get("SliceNormalVector", [])))
    is_direction = normal.shape == (3,) and abs(float(np.linalg.norm(normal)) - 1) < 0.1
    return Mosaic(images, instance.rows // across, instance.columns // across, normal if is_direction else None)


def _csa_elements(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """The name and values of each element of a CSA header, as far as it is intact.

    https://nipy.org/nibabel/dicom/siemens_csa.html describes it. It may be damaged, so it is read within its bounds.
    """
    at = 8 if data[:4] == b"SV10" else 0
    if len(data) < at + 8:
        return
    (count,) = struct.unpack_from("<I", data, at)
    at += 8
    for _ in range(min(count, _MOST_TAGS)):
        if at + 84 > len(data):
            return
        name = data[at : at + 64].split(b"\0")[0].decode("latin-1")
        (items,) = struct.unpack_from("<i", data, at + 76)
        at += 84
        values = []
        for _ in range(max(0, min(items, _MOST_ITEMS))):
            if at + 16 > len(data):
                return
            first, length = struct.unpack_from("<2i", data, at)
            length = length if data[:4] == b"SV10" else first
            if not 0 <= length <= len(data) - at - 16:
                return
            values.append(data[at + 16 : at + 16 + length].split(b"\0")[0].decode("latin-1").strip())
            at += 16 + (length + 3) // 4 * 4
        yield name, [value for value in values if value]


def _creator(instance: Instance, tag: int) -> str:
    return str(next(iter(values_of(instance.header, tag)), "")).strip()


def _numbers(values: list[str]) -> list[float]:
    try:
        found = [float(value) for value in values]
    except ValueError:
        return []
    return found if all(map(math.isfinite, found)) else []
