"""One vocabulary of modality words, and where it is used: tables, dataset.json, and the reader of volumes."""

from __future__ import annotations

import numpy as np
import pytest

from medret.archive.msd import msd_task
from medret.vocabularies import modality_label, modality_of
from medret.volume.intensity import modality_of as of_volume

CT = """CT, HRCT, CT SCAN, CTPA, CCTA, CTA, CBCT, X-ray CT, LDCT, ct angiography, Computed Tomography, CT;PET, PET/CT,
    PET-CT, computerised axial tomography, low-dose CT, CT_thorax, Cone-beam CT, 4D-CT, TDM"""
MRI = """MR, MRI, cineMRI, MRA, fMRI, T1w, T2w, T1-weighted, T2*, T2-FLAIR, T1ce, t1gd, FLAIR, DWI, ADC, BOLD, SWI, PD,
    PDw, mpMRI, Cine MRI, MR angiography, nuclear magnetic resonance, IRM"""
PET = "PT, PET, FDG-PET, Positron Emission Tomography"
OTHER = {"SPECT": "SPECT", "NM": "NM", "US": "US", "XA": "XA", "CR": "CR", "DX": "DX", "MG": "MG", "X-ray": "XR",
         "single-photon emission computed tomography": "SPECT", "optical coherence tomography": "OCT"}  # fmt: skip
GROUPS = {"CT": CT, "MRI": MRI, "PET": PET}
KNOWN = [(" ".join(word.split()), name) for name, words in GROUPS.items() for word in words.split(",")]
KNOWN += OTHER.items()
UNKNOWN = ["noNorm", "zscore", "image", "0", "unknown", "SPECTRE", "MRSA", "direct", "photo", "?", "", None]

HU = np.sort(np.concatenate([np.full(500, -1000.0), np.linspace(-120, -70, 200), np.linspace(0, 80, 300)]))


@pytest.mark.parametrize(("word", "name"), KNOWN)
def test_words_that_are_known(word: str, name: str) -> None:
    """C5: however the word is written, it is one modality, for a table, for dataset.json and for the reader."""
    assert {modality_of(form) for form in (word, word.lower(), word.upper(), f" {word} ")} == {name}
    assert msd_task({"channel_names": {"0": word}}, "x").modality == name
    assert msd_task({"modality": [word]}, "x").modality == name
    read = of_volume(word, HU)
    assert (read.name, read.source, read.is_hu) == (name, "label", name == "CT")


@pytest.mark.parametrize("word", UNKNOWN)
def test_words_that_are_not_known_leave_it_to_the_voxels(word: str | None) -> None:
    """C5: only a word that is known for another modality denies Hounsfield units."""
    assert modality_of(word) is None
    assert of_volume(word, HU).is_hu
    assert not of_volume(word, np.linspace(0, 900, 1000)).is_hu


@pytest.mark.parametrize(
    ("text", "label"),
    [("mr", "MRI"), (" ct ", "CT"), ("HRCT", "CT"), ("pt", "PET"), ("us", "US"), ("CT; pt ;ct", "CT;PET"),
     ("PET/CT", "PET/CT"), ("dual  source", "DUAL SOURCE"), ("T1w;T2w", "MRI"),
     ("X-ray CT", "CT"), ("x-ray computed tomography", "CT"), ("X-ray; CT", "XR;CT")],
)  # fmt: skip
def test_labels_have_one_spelling(text: str, label: str) -> None:
    assert modality_label(text) == label
    assert modality_label(label) == label


def test_channels_of_several_kinds_say_nothing() -> None:
    """Each channel is a file of its own: what they are not all, none is known to be."""
    assert msd_task({"channel_names": {"0": "CT", "1": "PET"}}, "x").modality is None
