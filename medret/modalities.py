"""One vocabulary of imaging modalities, for label tables, dataset.json files and the reader.

    CT    CT, HRCT, CTPA, CT scan, X-ray CT, computed tomography, TDM, ...
    MRI   MR, MRI, cineMRI, fMRI, MRA, T1w, T2w, FLAIR, DWI, BOLD, IRM, ...
    PET   PET, PT, FDG, positron emission tomography, ...
    US    US, ultrasound, echocardiography, ...
    XR    XR, X-ray, radiograph, ...
    NM, SPECT, MG, RF, CR, DX, XA, OCT and other DICOM terms stand for themselves

Case and punctuation do not matter. A word that is not here is unknown: nothing about the voxels follows from it.
"""

from __future__ import annotations

import re

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
