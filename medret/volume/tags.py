"""Labels from the tags of a DICOM series.

    label               DICOM attribute
    subject             PatientID, unless it is a word for nobody, such as ANONYMOUS
    modality            Modality, in medret's vocabulary: MR -> MRI, PT -> PET
    body_region         BodyPartExamined, else the anatomic region's meaning, as one of REGIONS
    sequence            of MRI: PulseSequenceName, SequenceName or ScanningSequence
    StudyInstanceUID, SeriesInstanceUID, SeriesDescription, StudyDate, Manufacturer, ConvolutionKernel: as they are

These are personal data, subject and dates above all: `--no-dicom-labels` leaves out what must not be in a store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medret.modalities import modality_label
from medret.visible import visible
from medret.volume.instances import items_of, text_of, texts_of

AS_THEY_ARE = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "StudyDate",
    "Manufacturer",
    "ConvolutionKernel",
)
LABELS = ("subject", "modality", "body_region", "sequence", *AS_THEY_ARE)
_LONGEST = 256  # characters; descriptions are free text
_NOBODY = re.compile(
    r"(ANON\w*|DE-?ID\w*|NONE|NULL|N/?A|UNKNOWN|REMOVED|REDACTED|NO ?NAME|PATIENT ?ID|ID|TEST|0+|X+|-+)", re.IGNORECASE
)
# region -> the words that name it or a part of it, without spaces, in capitals. Regions stand from head to foot.
REGIONS = {
    "Head": """HEAD BRAIN SKULL FACE FACIAL ORBIT ORBITS EYE EYES EAR EARS IAC IAM SINUS SINUSES PARANASAL
        PARANASALSINUS TEMPORAL TEMPORALBONE TMJ JAW MANDIBLE MAXILLA PITUITARY SELLA SELLATURCICA NOSE
        CRANIUM NEURO CEREBRUM HIPPOCAMPUS HEADBRAIN DENTAL SCHAEDEL KOPF TETE""",
    "Neck": "NECK CERVICAL SOFTTISSUENECK THYROID LARYNX PHARYNX CAROTID CAROTIDS HALS COU",
    "Chest": """CHEST THORAX LUNG LUNGS HEART CARDIAC CORONARY CORONARIES MEDIASTINUM BREAST BREASTS RIB RIBS
        STERNUM ESOPHAGUS OESOPHAGUS BRONCHUS TRACHEA AXILLA CLAVICLE THORACIC PULMONARY""",
    "Abdomen": """ABDOMEN ABD ABDO ABDOMINAL LIVER KIDNEY KIDNEYS RENAL PANCREAS SPLEEN STOMACH COLON BOWEL
        SMALLBOWEL GALLBLADDER BILEDUCT BILIARY ADRENAL ADRENALS UPPERABDOMEN RETROPERITONEUM HEPATIC
        BAUCH""",
    "Pelvis": """PELVIS PELVIC PELV PEL PROSTATE BLADDER UTERUS OVARY OVARIES RECTUM RECTAL HIP HIPS ANUS SCROTUM
        TESTIS VAGINA BECKEN""",
    "Spine": """SPINE CSPINE TSPINE LSPINE SSPINE LSSPINE CTSPINE TLSPINE CERVICALSPINE THORACICSPINE
        LUMBARSPINE SACRALSPINE LUMBAR LUMBOSACRALSPINE LUMBOSACRAL SACRUM COCCYX WHOLESPINE VERTEBRA
        VERTEBRAE SIJOINT SPINALCORD""",
    "Extremity": """EXTREMITY EXTREMITIES LEG LEGS ARM ARMS KNEE KNEES SHOULDER SHOULDERS ELBOW WRIST HAND HANDS
        FINGER THUMB ANKLE FOOT FEET TOE HEEL CALCANEUS FEMUR TIBIA FIBULA HUMERUS RADIUS ULNA FOREARM
        CALF THIGH SCAPULA PATELLA UPPEREXTREMITY LOWEREXTREMITY UPPERLIMB LOWERLIMB LOWERLEG UPPERLEG
        UPPERARM LOWEREXTREMITIES""",
    "Whole body": "WHOLEBODY TOTALBODY BODY WB WHOLE TRUNK",
}
_REGION_OF = {word: (region,) for region, words in REGIONS.items() for word in words.split()} | {
    "HEADNECK": ("Head", "Neck"),
    "CHESTABDOMEN": ("Chest", "Abdomen"),
    "CHESTABDPELVIS": ("Chest", "Abdomen", "Pelvis"),
    "CHESTABDOMENPELVIS": ("Chest", "Abdomen", "Pelvis"),
    "CAP": ("Chest", "Abdomen", "Pelvis"),
    "TAP": ("Chest", "Abdomen", "Pelvis"),
    "ABDOMENPELVIS": ("Abdomen", "Pelvis"),
    "ABDPELVIS": ("Abdomen", "Pelvis"),
    "ABDPEL": ("Abdomen", "Pelvis"),
    "NECKCHEST": ("Neck", "Chest"),
    "NECKCHESTABDOMEN": ("Neck", "Chest", "Abdomen"),
    "NECKCHESTABDPELV": ("Neck", "Chest", "Abdomen", "Pelvis"),
}
_FILLERS = {"AND", "LEFT", "RIGHT", "L", "R", "LT", "RT", "BOTH", "UPPER", "LOWER", "TO", "WITH"}


def labels_of(header: Any) -> Mapping[str, str]:
    """The labels that the tags of an instance give; a label without a usable value is left out."""
    subject = text_of(header, "PatientID")
    found = {
        "subject": "" if _NOBODY.fullmatch(subject) else subject,
        "modality": modality_label(text_of(header, "Modality")),
        "body_region": _region(header),
        "sequence": _sequence(header),
        **{name: "\\".join(texts_of(header, name)) for name in AS_THEY_ARE},
    }
    return {name: text for name, value in found.items() if (text := visible(" ".join(value.split()))[:_LONGEST])}


def body_region(text: str) -> str:
    """The regions that a text names, from head to foot, joined by `;`; empty if a word of it is not known."""
    words = re.findall(r"[A-Z]+", text.upper())
    whole = _REGION_OF.get("".join(words))
    named = {region for word in words if word not in _FILLERS for region in _REGION_OF.get(word, ("",))}
    regions = set(whole) if whole else named
    return "" if "" in regions else ";".join(region for region in REGIONS if region in regions)


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
