"""Real volumes and the odd files beside them; skipped where they are not at hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from medret.errors import VolumeError
from medret.recipe import PLANES, SliceRecipe
from medret.volume import Limits, SlicedVolume, read_volume

CODES = {
    "all_nan.nii.gz": "non_finite",
    "bad_datatype.nii.gz": "datatype_unsupported",
    "bad_magic.nii.gz": "header_invalid",
    "cat.nii.gz": "not_nifti",
    "complex64.nii.gz": "datatype_unsupported",
    "constant.nii.gz": "constant",
    "empty.nii.gz": "empty",
    "garbage.nii.gz": "not_nifti",
    "gz_of_garbage.nii.gz": "not_nifti",
    "header_only.nii": "truncated",
    "huge_dims.nii.gz": "too_large",
    "made_5d.nii.gz": "dimensions_unsupported",
    "negative_dim.nii.gz": "header_invalid",
    "one_voxel.nii.gz": "too_small",
    "rgb24.nii.gz": "datatype_unsupported",
    "singular_affine.nii.gz": "affine_invalid",
    "slice2d.nii.gz": "dimensions_unsupported",
    "text.nii.gz": "not_nifti",
    "truncated.nii.gz": "truncated",
    "truncated_raw.nii": "truncated",
    "zero_dim.nii.gz": "header_invalid",
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def bad(shared_data: Path, name: str) -> SlicedVolume:
    recipe = SliceRecipe(planes=PLANES, slices="uniform:5")
    return read_volume((shared_data / "bad" / name).read_bytes(), "the same id", recipe, [96])


def test_every_odd_file_is_used_or_told_why_not(shared_data: Path) -> None:
    unexpected = {}
    for row in rows(shared_data / "bad" / "bad.csv"):
        try:
            bad(shared_data, row["path"])
            found = "used"
        except VolumeError as error:
            found = str(error.code)
        expected = "used" if row["usable"] == "yes" else CODES[row["path"]]
        if found != expected:
            unexpected[row["path"]] = (expected, found)
    assert not unexpected


def test_the_same_volume_stored_otherwise_gives_the_same_pixels(shared_data: Path) -> None:
    recipe = SliceRecipe(planes=PLANES, slices="uniform:5")
    data = (shared_data / "volumes" / "niivue_chris_pd.nii.gz").read_bytes()
    expected = read_volume(data, "the same id", recipe, [96])
    for name in ("orient_PIR_niivue_chris_pd.nii.gz", "orient_LAS_niivue_chris_pd.nii.gz"):
        assert np.array_equal(bad(shared_data, name).pixels[96], expected.pixels[96])
    assumed = bad(shared_data, "no_affine_niivue_chris_pd.nii.gz").facts
    assert assumed.affine_source == "assumed"


def test_odd_but_valid_storage_gives_the_same_pixels(shared_data: Path) -> None:
    expected = bad(shared_data, "exact_duplicate.nii.gz").pixels[96].astype(int)
    for name in (
        "gz_named.nii",
        "plain_named.nii.gz",
        "nifti2.nii.gz",
        "big_endian.nii",
        "int64.nii.gz",
        "float64.nii.gz",
    ):
        assert np.abs(bad(shared_data, name).pixels[96] - expected).max() <= 1
    assert bad(shared_data, "nan_inf.nii.gz").facts.non_finite_voxels > 0
    assert bad(shared_data, "real_4d_pcasl.nii.gz").facts.time_points == 10


def test_every_real_volume_is_read_and_a_missing_label_changes_no_pixel(shared_data: Path) -> None:
    recipe = SliceRecipe(slices="uniform:3")
    guesses: dict[tuple[str, str], int] = {}
    for row in rows(shared_data / "labels.csv"):
        data = (shared_data / "volumes" / row["path"]).read_bytes()
        labelled = read_volume(data, row["volume_id"], recipe, [32], modality=row["modality"])
        guessed = read_volume(data, row["volume_id"], recipe, [32], limits=Limits(refuse_masks=True))  # C10
        assert labelled.facts.intensity == guessed.facts.intensity, row["path"]
        assert np.array_equal(labelled.pixels[32], guessed.pixels[32]), row["path"]
        assert "x".join(map(str, labelled.facts.shape[:3])) == row["shape"]
        key = (row["modality"], guessed.facts.modality)
        guesses[key] = guesses.get(key, 0) + 1
    # C6. The three CT without HU are a shifted atlas and two brains cut out of their skulls.
    assert guesses == {("MRI", "MRI"): 131, ("CT", "CT"): 23, ("CT", "MRI"): 3, ("PET", "MRI"): 12}


@pytest.mark.parametrize(
    ("name", "intensity"),
    [
        ("lung_dx-a0002_2.nii.gz", "hu:soft_tissue"),
        ("lidc-idri-0001_part.nii.gz", "hu:soft_tissue"),
        ("tptbox_sub-ct_label-22_ct.nii.gz", "hu:soft_tissue"),
        ("clinical_scct.nii.gz", "percentile"),
        ("totalseg_ct_brain_atlas.nii.gz", "percentile"),
        ("sts_006_pet.nii.gz", "percentile"),
    ],
)
def test_intensities_of_known_volumes(shared_data: Path, name: str, intensity: str) -> None:
    data = (shared_data / "volumes" / name).read_bytes()
    assert read_volume(data, name, SliceRecipe(), [32]).facts.intensity == intensity
