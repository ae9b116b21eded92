"""The instances of a DICOM series: the header of each, checked, and those that are no images left out."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medret.archive.dicom_head import DicomHead, kind_of, read_head
from medret.errors import QuarantineCode, VolumeError
from medret.visible import visible
from medret.volume.content import Limits, Part, describe

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SYNTAX, _DEFLATED = b"\x02\x00\x10\x00UI", b"1.2.840.10008.1.2.1.99"
_META_LENGTH_AT, _META_ELEMENTS_AT = 140, 144  # the value of (0002,0000), and where the elements that it counts begin
_DEFLATED_EXTRA_BYTES = 64 << 20  # of a header, beside the voxels that the limit allows
_MOST_NAMED = 3
_START_BYTES = 4096
_BITS = (8, 16, 32)

# The elements that are read. Others, such as names of people and the private data of makers, stay bytes.
_TOP = """SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyDate AcquisitionDate AcquisitionTime Modality
    Manufacturer SeriesDescription PatientID BodyPartExamined ScanningSequence SequenceName SliceThickness EchoTime
    SpacingBetweenSlices TriggerTime ConvolutionKernel DiffusionBValue PulseSequenceName StudyInstanceUID
    SeriesInstanceUID AcquisitionNumber InstanceNumber PatientOrientation ImagePositionPatient ImageOrientationPatient
    TemporalPositionIdentifier SliceLocation ComplexImageComponent AnatomicRegionSequence SamplesPerPixel
    PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
    BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept
    RescaleSlope DetectorInformationSequence SliceVector PhaseVector TimeSlotVector SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence ExtendedOffsetTable ExtendedOffsetTableLengths"""
CSA_CREATOR, CSA_HEADER, MOSAIC_CREATOR, MOSAIC_IMAGES = 0x00290010, 0x00291010, 0x00190010, 0x0019100A
GE_CREATOR, GE_COMPONENT = 0x00430010, 0x0043102F
_PRIVATE = [CSA_CREATOR, CSA_HEADER, MOSAIC_CREATOR, MOSAIC_IMAGES, GE_CREATOR, GE_COMPONENT]


@contextmanager
def unvalidated() -> Iterator[None]:
    """Let pydicom neither check values nor warn of them in the block: medret checks those that it uses."""
    from pydicom import config

    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = before


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

    wanted: list[Any] = [*_TOP.split(), *_PRIVATE]
    data = part.data
    syntax = ""
    at = data.find(_SYNTAX, 0, _START_BYTES) + len(_SYNTAX) + 2  # after its length
    if data.startswith(_DEFLATED, at):
        data, syntax = _inflated(part, limits), "1.2.840.10008.1.2.1"
    stream = io.BytesIO(data)
    try:
        header = pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=wanted)
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


def values_of(data_set: Any, keyword: str | int) -> list[Any]:
    """The values of an element; empty if it is missing or cannot be read."""
    try:
        value = data_set[keyword].value if isinstance(keyword, int) else data_set.get(keyword)
    except Exception:  # noqa: BLE001  # whatever pydicom raises about a value: it counts as missing
        return []
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]


def numbers_of(data_set: Any, keyword: str | int) -> list[float]:
    """The values of an element as finite numbers; empty if one of them is none."""
    try:
        found = [float(value) for value in values_of(data_set, keyword)]
    except (TypeError, ValueError, OverflowError):
        return []
    return found if all(abs(value) < float("inf") for value in found) else []


def texts_of(data_set: Any, keyword: str) -> list[str]:
    """The values of an element as stripped text."""
    return [str(value).strip(" \0\t\r\n") for value in values_of(data_set, keyword)]


def text_of(data_set: Any, keyword: str) -> str:
    """The first value of an element as stripped text; empty if it is missing."""
    return next(iter(texts_of(data_set, keyword)), "")


def items_of(data_set: Any, keyword: str) -> Sequence[Any]:
    """The items of a sequence; empty if it is missing or cannot be read."""
    try:
        found = data_set.get(keyword) if data_set is not None else None
    except Exception:  # noqa: BLE001  # as in values_of
        return ()
    return found if found is not None and type(found).__name__ == "Sequence" else ()
