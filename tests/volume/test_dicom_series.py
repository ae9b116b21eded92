"""Real series equal what dcm2niix makes of them: voxel for voxel, and in their affine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medret.recipe import PLANES, SliceRecipe
from medret.volume import Limits, Part, read_volume
from medret.volume.open import open_volume
from tests import dicom_phantoms as make

# folder -> (the file that dcm2niix writes of the first volume, sides as stored)
SERIES = {
    "ct_ge_head_tilt": ("2.nii", (512, 512, 28)),
    "mr_ge_epi_4d": ("4.nii", (64, 64, 15, 10)),
    "mr_philips_enhanced": ("801_e1.nii", (64, 64, 32)),  # its phase and its field map are other volumes
    "mr_siemens_enhanced": ("6.nii", (64, 64, 6, 4)),
    "mr_siemens_mosaic": ("3.nii", (72, 72, 5, 2)),
    "mr_siemens_sagittal_mosaic": ("2.nii", (42, 64, 5)),
    "mr_siemens_t1_sagittal": ("3.nii", (256, 256, 35)),
}


def parts_in(folder: Path) -> tuple[Part, ...]:
    return tuple(Part(path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


def converted(folder: Path, out: Path) -> None:
    """Run dcm2niix on a folder."""
    subprocess.run([dcm2niix.bin, "-b", "n", "-f", "%s", "-o", out, folder], check=True, capture_output=True)


def canonical(voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> Any:
    return nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.float32), affine))


@pytest.mark.parametrize("name", SERIES)
def test_it_equals_what_dcm2niix_makes_of_it(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder = shared_data / "dicom" / name
    file, shape = SERIES[name]
    converted(folder, tmp_path)
    theirs: Any = nib.load(tmp_path / file)
    stored = open_volume(parts_in(folder), Limits())
    assert stored.shape == shape
    expected = np.asarray(theirs.dataobj.get_unscaled())
    ours = canonical(stored.voxels(0), stored.placement.affine)
    theirs = canonical(expected[..., 0] if expected.ndim == 4 else expected, theirs.affine)
    same = ours.get_fdata() == theirs.get_fdata()
    assert stored.placement.source == "dicom"
    if name != "ct_ge_head_tilt":
        assert same.all()
        assert np.allclose(ours.affine, theirs.affine, atol=1e-3)
        return
    # The padding outside the scanner's circle (-1500 HU) becomes the darkest value here, and stays there.
    assert (theirs.get_fdata()[~same] == -1500).all()
    assert (ours.get_fdata()[~same] == -1023).all()
    # Slices are 1.1 to 7.0 mm apart. dcm2niix takes the first distance for all of them, and that along the normal,
    # which its further file corrects for the tilt. Here, the affine runs from the first slice to the last.
    assert np.allclose(ours.affine[:, [0, 1, 3]], theirs.affine[:, [0, 1, 3]], atol=1e-3)
    assert ours.affine[:3, 2] == pytest.approx([0, 0, (157.7760586 - 5.8360586) / 27], abs=1e-3)


def test_uneven_and_tilted_slices_keep_their_true_positions(shared_data: Path) -> None:
    import pydicom

    folder = shared_data / "dicom" / "ct_ge_head_tilt"
    volume = read_volume(parts_in(folder), "ct", SliceRecipe(slices="all"), [16])
    facts = volume.facts
    assert facts.series is not None
    assert (facts.series.tilt_degrees, facts.series.missing_slices) == (18.5, 0)
    assert facts.series.gaps_mm == pytest.approx((1.0811, 6.9986), abs=1e-3)
    assert (facts.modality, facts.modality_source, facts.intensity) == ("CT", "dicom", "hu:soft_tissue")
    centre_row = 0.4882812 * 255.5 * np.array([0, 0.9483237, -0.3173047])
    for ref in volume.slices:
        instance = next(path for path in folder.iterdir() if ref.source == pydicom.dcmread(path).SOPInstanceUID)
        position = np.array(pydicom.dcmread(instance).ImagePositionPatient, dtype=float) + centre_row
        assert ref.position_mm == pytest.approx(position[2], abs=1e-3)


def test_labels_of_a_real_series(shared_data: Path) -> None:
    labels = open_volume(parts_in(shared_data / "dicom" / "mr_siemens_t1_sagittal"), Limits()).labels
    names = ("subject", "modality", "body_region", "sequence", "StudyDate", "SeriesDescription")
    assert [labels[name] for name in names] == ["anon-mr6", "MRI", "Head", "*fl2d1", "20220407", "t1_fl2d_sag"]


@pytest.mark.parametrize("name", ["mr_ge_epi_4d", "mr_siemens_mosaic", "mr_siemens_t1_sagittal"])
def test_a_series_and_its_nifti_twin_give_the_same_pixels(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder = shared_data / "dicom" / name
    converted(folder, tmp_path)
    recipe = SliceRecipe(planes=PLANES, slices="uniform:3")
    ours = read_volume(parts_in(folder), "x", recipe, [32])
    theirs = read_volume((tmp_path / SERIES[name][0]).read_bytes(), "x", recipe, [32])
    assert np.abs(ours.pixels[32].astype(int) - theirs.pixels[32]).max() <= 1


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [
        (syntax, dtype)
        for syntax in make.SYNTAXES
        for dtype in ("uint8", "int16", "uint16")
        if (syntax, dtype) != ("JPEG-LS", "int16")  # pydicom does not write it
    ],
)
def test_every_syntax_gives_the_same_voxels(syntax: str, dtype: str) -> None:
    low = -900 if dtype == "int16" else 0
    voxels = np.random.default_rng(1).integers(low, 250, (40, 36, 9)).astype(dtype)
    stored = open_volume(make.parts_of(make.single_frames(voxels), syntax), Limits())
    assert np.array_equal(stored.voxels(0), voxels)
    assert stored.voxels(0).flags.f_contiguous
    assert stored.dtype == dtype
    assert np.allclose(stored.placement.affine, make.affine_of(), atol=1e-6)
