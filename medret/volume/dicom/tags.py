"""The tags of a DICOM header: which are read, their values, and the labels that they give."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from medret.visible import visible
from medret.vocabularies import UNCHANGED, body_region, modality_label

# Other elements, such as names of people and the private data of makers, stay bytes.
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
READ_TAGS: list[Any] = [
    *_TOP.split(),
    *(CSA_CREATOR, CSA_HEADER, MOSAIC_CREATOR, MOSAIC_IMAGES, GE_CREATOR, GE_COMPONENT),
]
_LONGEST = 256  # characters; descriptions are free text
_NOBODY = re.compile(
    r"(ANON\w*|DE-?ID\w*|NONE|NULL|N/?A|UNKNOWN|REMOVED|REDACTED|NO ?NAME|PATIENT ?ID|ID|TEST|0+|X+|-+)", re.IGNORECASE
)


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


def labels_of(header: Any) -> Mapping[str, str]:
    """The labels that the tags of an instance give; a label without a usable value is left out."""
    subject = text_of(header, "PatientID")
    found = {
        "subject": "" if _NOBODY.fullmatch(subject) else subject,
        "modality": modality_label(text_of(header, "Modality")),
        "body_region": _region(header),
        "sequence": _sequence(header),
        **{name: "\\".join(texts_of(header, name)) for name in UNCHANGED},
    }
    return {name: text for name, value in found.items() if (text := visible(" ".join(value.split()))[:_LONGEST])}


def head_labels(series: pa.Table, hidden: Collection[str] = ()) -> dict[str, Mapping[str, str]]:
    """volume_id -> the labels that the first bytes of an instance give, without the hidden ones.

    series: archive.grouping.SERIES.
    """
    keywords = {"patient_id": "PatientID", "modality": "Modality", "body_part": "BodyPartExamined"}
    found: dict[str, Mapping[str, str]] = {}
    for row in series.to_pylist():
        labels = labels_of({word: row[name] for name, word in keywords.items()})
        found[row["volume_id"]] = {name: text for name, text in labels.items() if name not in hidden}
    return found


def _region(header: Any) -> str:
    for text in (text_of(header, "BodyPartExamined"), *_anatomic_regions(header)):
        if region := body_region(text):
            return region
    return ""


def _anatomic_regions(header: Any) -> list[str]:
    shared = next(iter(items_of(header, "SharedFunctionalGroupsSequence")), None)
    places = [header, *items_of(shared, "FrameAnatomySequence")[:1]]
    return [text_of(item, "CodeMeaning") for place in places for item in items_of(place, "AnatomicRegionSequence")[:1]]


def _sequence(header: Any) -> str:
    if text_of(header, "Modality") != "MR":
        return ""
    named = text_of(header, "PulseSequenceName") or text_of(header, "SequenceName")
    return named or ";".join(texts_of(header, "ScanningSequence"))
