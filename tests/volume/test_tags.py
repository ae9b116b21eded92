"""Labels from DICOM tags: body regions in their usual spellings, subjects, sequences, and text of any character set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medret.vocabularies import LABEL_OF, body_region
from medret.volume import Limits
from medret.volume.open import open_volume
from tests import dicom_phantoms as make


def labels(**tags: Any) -> dict[str, str]:
    voxels = np.arange(20 * 18, dtype=np.int16).reshape(20, 18, 1)
    return dict(open_volume(make.parts_of(make.single_frames(voxels, **tags)), Limits()).labels)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("HEAD", "Head"),
        ("Brain ", "Head"),
        ("CHEST", "Chest"),
        ("Thorax", "Chest"),
        ("CHESTABDPELVIS", "Chest;Abdomen;Pelvis"),
        ("Abdomen^Pelvis", "Abdomen;Pelvis"),
        ("CHEST_TO_PELVIS", "Chest;Pelvis"),
        ("ABD/PEL", "Abdomen;Pelvis"),
        ("HEAD AND NECK", "Head;Neck"),
        ("CSPINE", "Spine"),
        ("C-SPINE", "Spine"),
        ("LUMBAR SPINE", "Spine"),
        ("LEFT KNEE", "Extremity"),
        ("Upper Extremity", "Extremity"),
        ("PROSTATE", "Pelvis"),
        ("WHOLEBODY", "Whole body"),
        ("Whole Body", "Whole body"),
        ("PHANTOM", ""),
        ("CHEST PHANTOM", ""),
        ("", ""),
    ],
)
def test_body_regions(text: str, region: str) -> None:
    assert body_region(text) == region
    assert labels(BodyPartExamined=text[:16]).get("body_region", "") in (region, body_region(text[:16]))


@pytest.mark.parametrize(
    "nobody", ["ANONYMOUS", "anon", "Anonymized", "0", "000000", "NONE", "n/a", "XXXX", "De-Identified"]
)
def test_a_word_for_nobody_is_no_subject(nobody: str) -> None:
    assert "subject" not in labels(PatientID=nobody)
    assert labels(PatientID="ANON-17")["subject"] == "ANON-17"


def test_modalities_and_sequences() -> None:
    mri = labels(modality="MR", SequenceName="*tfl3d1", ScanningSequence=["GR", "IR"])
    assert (mri["modality"], mri["sequence"]) == ("MRI", "*tfl3d1")
    assert labels(modality="MR", ScanningSequence=["GR", "IR"])["sequence"] == "GR;IR"
    assert "sequence" not in labels(SequenceName="x")
    assert labels(Modality="PT")["modality"] == "PET"


def test_all_labels_have_names_that_are_listed() -> None:
    found = labels(
        BodyPartExamined="HEAD",
        StudyDate="20260131",
        Manufacturer="Maker",
        ConvolutionKernel="B30f",
        SeriesDescription="a",
    )
    assert set(found) == set(LABEL_OF.values()) - {"sequence"}
    assert found["StudyDate"] == "20260131"
    assert found["SeriesInstanceUID"] == "1.2.826.0.7"


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("ISO_IR 100", "Schädel"),
        ("ISO_IR 192", "頭部 Ω"),
        ("ISO_IR 144", "Голова"),
        ("GB18030", "头部"),
        ("ISO 2022 IR 87", "頭部"),
    ],
)
def test_text_in_its_character_set(charset: str, text: str) -> None:
    value = ["", charset] if charset.startswith("ISO 2022") else charset
    assert labels(SpecificCharacterSet=value, SeriesDescription=text)["SeriesDescription"] == text


def test_text_is_made_safe_and_short() -> None:
    found = labels(
        SeriesDescription="a\x1b[31m\u202eb  \n c", Manufacturer="x" * 1000, SpecificCharacterSet="ISO_IR 192"
    )
    assert found["SeriesDescription"] == "a\\x1b[31m\\u202eb c"
    assert len(found["Manufacturer"]) == 256


def test_the_anatomic_region_serves_without_a_body_part() -> None:
    voxels = np.arange(20 * 18, dtype=np.int16).reshape(20, 18, 1)
    data_sets = make.single_frames(voxels)
    make.with_item(data_sets[0], "AnatomicRegionSequence", CodeValue="T-A0100", CodeMeaning="Brain")
    assert open_volume(make.parts_of(data_sets), Limits()).labels["body_region"] == "Head"
    frames = make.enhanced(voxels)
    anatomy = Dataset()
    make.with_item(anatomy, "AnatomicRegionSequence", CodeMeaning="Abdomen")
    frames.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
    assert open_volume(make.parts_of([frames]), Limits()).labels["body_region"] == "Abdomen"
