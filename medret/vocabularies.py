"""The vocabularies of labels: modalities and body regions, and which DICOM tags give which labels.

modality of label tables, dataset.json files and the reader. Case and punctuation do not matter. A word that is not here
is unknown: nothing about the voxels follows from it.

    CT    CT, HRCT, CTPA, CT scan, X-ray CT, computed tomography, TDM, ...
    MRI   MR, MRI, cineMRI, fMRI, MRA, T1w, T2w, FLAIR, DWI, BOLD, IRM, ...
    PET   PET, PT, FDG, positron emission tomography, ...
    US    US, ultrasound, echocardiography, ...
    XR    XR, X-ray, radiograph, ...
    NM, SPECT, MG, RF, CR, DX, XA, OCT and other DICOM terms stand for themselves

body_region of tables and DICOM tags: `CHEST`, `LUNG` and `Thorax` are Chest; `CHESTABDPELVIS` is Chest;Abdomen;Pelvis.

    Head, Neck, Chest, Abdomen, Pelvis, Spine, Extremity, Whole body

DICOM tags. They are personal data, subject and dates above all: `--no-dicom-labels` keeps them out of a store.

    label          tag
    subject        PatientID, unless it is a word for nobody, such as ANONYMOUS
    modality       Modality, in medret's vocabulary: MR -> MRI, PT -> PET
    body_region    BodyPartExamined, else the meaning of AnatomicRegionSequence, in medret's vocabulary
    sequence       of MRI: PulseSequenceName, SequenceName or ScanningSequence
    UNCHANGED      under their own names
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from medret.errors import UsageError

# Phrases that mean one word, and words that mean two.
_PHRASES = tuple(
    (re.compile(rf"\b(?:{pattern})\b"), word)
    for pattern, word in (
        (r"SINGLE PHOTON(?: EMISSION)?(?: COMPUT\w+)?(?: TOMOGRAPHY)?", "SPECT"),
        (r"POSITRON(?: EMISSION)?(?: COMPUT\w+)?(?: TOMOGRAPHY)?", "PET"),
        (r"OPTICAL COHERENCE(?: TOMOGRAPHY)?", "OCT"),
        (r"COMPUT(?:ED|ERI[SZ]ED|ER)(?: AXIAL)? TOMOGRAPHY", "CT"),
        (r"(?:NUCLEAR )?MAGNETIC RESONANCE", "MRI"),
        (r"NUCLEAR MEDICINE", "NM"),
        (r"X ?RAYS? CT", "CT"),
        (r"X RAYS?", "XR"),
        (r"PETCT", "PET CT"),
        (r"SPECTCT", "SPECT CT"),
        (r"PETMRI?|MRPET", "PET MRI"),
    )
)
_WORDS = {
    "CT": """CT CTS CTA CTC CTCA CTE CTP CTPA CTU CTV CCTA CCT CTSCAN CATSCAN CAT TDM TAC TC
        2DCT 3DCT 4DCT CBCT CECT CEMDCT DECT DSCT EBCT FBCT HRCT HRPQCT ICBCT KVCBCT KVCT LDCT MCT MDCT MICROCT MSCT
        MVCBCT MVCT NCCT NDCT NECT PCCT PCDCT PCT PQCT QCT RADCT SCT SDCT UHRCT ULDCT UCT""",
    "MRI": """MR MRI MRT IRM RM RMN MRA MRV MRCP MRE MRS MRSI MRIS CMR NMR CEMRA DMRI FMRI RSFMRI SMRI QMRI CINE
        CINEMR CARDIACMR LGE FLAIR PD PDW PDFS PDFF ADC DWI DTI DSI DKI NODDI DCE DSC ASL BOLD SWI QSM EPI TOF MPRAGE
        MP2RAGE SPACE SPGR FSPGR GRE FFE TSE FSE HASTE BSSFP SSFP TRUFISP FIESTA VIBE LAVA CISS STIR DIXON FIELDMAP""",
    "PET": "PET PT FDG PSMA",
    "NM": "NM SCINTIGRAPHY",
    "US": "US ULTRASOUND ULTRASONOGRAPHY SONOGRAPHY ECHOCARDIOGRAPHY IVUS ABUS TTE TEE",
    "XR": "XR XRAY XRAYS RADIOGRAPH RADIOGRAPHY",
    "MG": "MG MAMMOGRAPHY MAMMOGRAM DBT TOMOSYNTHESIS",
    "RF": "RF FLUOROSCOPY",
    **{word: word for word in ("SPECT", "OCT", "CR", "DX", "DR", "XA", "IO", "PX", "RTDOSE")},
}
_KNOWN = {word: modality for modality, words in _WORDS.items() for word in words.split()}
# Names of sequences take suffixes (T1w, T1ce, T2star, T2FLAIR), and MRI takes prefixes (cineMRI, mpMRI).
_SEQUENCE = re.compile(r"(?:2D|3D|AX|SAG|COR|TRA|TRANS|CE|GD|Q)?T[12]\w*|\w*MRI", re.ASCII)


def modality_of(text: str | None) -> str | None:
    """The modality that `text` names, as in the table above; None if it names no known one.

    If it names several, CT if that is one of them (`CT;PET`), because only for CT are the voxels checked for Hounsfield
    units; else the first.
    """
    named = _modalities_in(text or "")
    return "CT" if "CT" in named else next(iter(named), None)


def modality_label(text: str) -> str:
    """A label in standard spelling: `mr` -> MRI, `HRCT` -> CT, `CT; pt` -> CT;PET; unknown words in upper case."""
    parts = (" ".join(part.upper().split()) for part in text.split(";"))
    return ";".join(dict.fromkeys(_single(part) or part for part in parts if part))


def _single(text: str) -> str | None:
    named = _modalities_in(text)
    return next(iter(named)) if len(named) == 1 else None


def _modalities_in(text: str) -> dict[str, None]:
    """The distinct modalities named, in order (a dictionary serves as an ordered set)."""
    plain = " ".join(re.findall(r"[^\W_]+", text.upper()))
    for pattern, word in _PHRASES:
        plain = pattern.sub(word, plain)
    named = (_KNOWN.get(word) or ("MRI" if _SEQUENCE.fullmatch(word) else None) for word in plain.split())
    return dict.fromkeys(modality for modality in named if modality)


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


def body_region(text: str) -> str:
    """The regions that a text names, from head to foot, joined by `;`; empty if a word of it is not known."""
    words = re.findall(r"[A-Z]+", text.upper())
    whole = _REGION_OF.get("".join(words))
    named = {region for word in words if word not in _FILLERS for region in _REGION_OF.get(word, ("",))}
    regions = set(whole) if whole else named
    return "" if "" in regions else ";".join(region for region in REGIONS if region in regions)


UNCHANGED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "StudyDate",
    "Manufacturer",
    "ConvolutionKernel",
)
LABEL_OF = {
    "PatientID": "subject",
    "Modality": "modality",
    "BodyPartExamined": "body_region",
    "AnatomicRegionSequence": "body_region",
    "PulseSequenceName": "sequence",
    "SequenceName": "sequence",
    "ScanningSequence": "sequence",
    **{name: name for name in UNCHANGED},
}
EVERY_TAG = "all"


def labels_of_tags(texts: Iterable[str]) -> frozenset[str]:
    """The labels of these tags. texts: keywords, or several with commas between them, or EVERY_TAG; raises UsageError.

    Several tags may give one label; each of them names it.
    """
    known = {keyword.lower(): label for keyword, label in LABEL_OF.items()}
    labels: set[str] = set()
    for word in (word.strip() for text in texts for word in text.split(",")):
        if word.lower() == EVERY_TAG:
            labels.update(LABEL_OF.values())
        elif word.lower() in known:
            labels.add(known[word.lower()])
        else:
            raise UsageError(
                f"--no-dicom-labels: no label is taken from a tag {word!r}; there are {', '.join(LABEL_OF)}, and "
                f"{EVERY_TAG} for all of them"
            )
    return frozenset(labels)
