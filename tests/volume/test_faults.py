"""Small inputs that were once read wrongly, with what is right; skipped where they are not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medret.recipe import SliceRecipe
from medret.volume import read_volume

# file -> facts that must hold, for a volume without a label
RIGHT: dict[str, dict[str, Any]] = {
    "volumes/sparse_f4_300.nii.gz": {"time_points": 1},  # A9
    "volumes/nan_background_60.nii.gz": {"intensity": "percentile"},  # C9
    "volumes/mr_phase_mrad.nii.gz": {"modality": "MRI", "intensity": "percentile"},  # C6
    "volumes/mr_real_part.nii.gz": {"modality": "MRI", "intensity": "percentile"},  # C6
    "real/ge_fieldmaphz.nii": {"modality": "MRI", "intensity": "percentile"},  # C6
    "real/philips_fieldmaphz.nii": {"modality": "MRI", "intensity": "percentile"},  # C6
    "volumes/units_micron.nii.gz": {"spacing_mm": (0.5, 0.5, 0.8), "spacing_assumed": False},  # C11
    "volumes/units_micron_far.nii.gz": {"spacing_mm": (0.5, 0.5, 0.8)},  # C11
    "volumes/dim4_zero.nii.gz": {"shape": (48, 56, 40)},  # C12
    "volumes/sform_zero_qform_good.nii.gz": {"affine_source": "qform", "spacing_mm": (2.0, 2.0, 3.0)},  # C12
    "volumes/qform_pixdim3_zero.nii.gz": {"spacing_mm": (1.0, 1.0, 1.0), "spacing_assumed": True},  # C12
    "volumes/single_slice_qform_pixdim3_zero.nii.gz": {"spacing_mm": (0.5, 0.5, 1.0), "spacing_assumed": True},  # C12
    "volumes/4d_first_zero.nii.gz": {"time_point": 1},  # C14
    "volumes/4d_first_nan.nii.gz": {"time_point": 1},  # C14
}


@pytest.mark.parametrize("name", RIGHT)
def test_each_is_read_as_it_should_be(shared_data: Path, name: str) -> None:
    facts = read_volume((shared_data / "faults" / name).read_bytes(), name, SliceRecipe(), [32]).facts
    for fact, expected in RIGHT[name].items():
        found = getattr(facts, fact)
        assert found == (pytest.approx(expected) if fact == "spacing_mm" else expected), fact
