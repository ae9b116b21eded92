"""One vocabulary of body regions, for tables and for tags of DICOM.

    Head, Neck, Chest, Abdomen, Pelvis, Spine, Extremity, Whole body

`CHEST`, `LUNG` and `Thorax` are Chest; `CHESTABDPELVIS` is Chest;Abdomen;Pelvis.
"""

from __future__ import annotations

import re

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
