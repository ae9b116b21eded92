"""Labels from the tags of a DICOM series; `medret.dicom_labels` says which tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from medret.body_regions import body_region
from medret.dicom_labels import UNCHANGED
from medret.modalities import modality_label
from medret.visible import visible
from medret.volume.dicom.instances import items_of, text_of, texts_of

_LONGEST = 256  # characters; descriptions are free text
_NOBODY = re.compile(
    r"(ANON\w*|DE-?ID\w*|NONE|NULL|N/?A|UNKNOWN|REMOVED|REDACTED|NO ?NAME|PATIENT ?ID|ID|TEST|0+|X+|-+)", re.IGNORECASE
)


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
