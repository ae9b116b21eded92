"""Masks are told from images by their names, as public collections name them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from medret.archive import Listing, list_archive
from medret.archive.skip_rules import mask_names

MASKS = (
    "case_00000/segmentation.nii.gz",
    "segmentation-0.nii",
    "BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz",
    "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz",
    "derivatives/x/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
    "sub-01/anat/sub-01_dseg.nii.gz",
    "sub-01/anat/sub-01_label-GM_probseg.nii.gz",
    "sub-01_T1w_seg.nii.gz",
    "labelsTr/amos_0001.nii.gz",
    "labelsVa/amos_0001.nii.gz",
    "labelsTs/x.nii.gz",
    "nnUNet/gt_segmentations/x.nii.gz",
    "s0011/segmentations/liver.nii.gz",
    "Ground_Truth/x.nii",
    "patient001/patient001_frame01_gt.nii.gz",
    "ct_train_1001_label.nii.gz",
    "label0001.nii.gz",
    "mri/aparc+aseg.nii.gz",
    "x_msk.nii",
    "CASE-label.NII.GZ",
)
IMAGES = (
    "imagesTr/amos_0001.nii.gz",
    "segmented_liver_ct.nii.gz",
    "sub-01_T1w.nii.gz",
    "sub-01_acq-seg_T1w.nii.gz",
    "T1_masked.nii.gz",
    "mask_ct.nii.gz",
    "unlabelled/x.nii.gz",
    "without_labels/x.nii.gz",
    "case_00000/imaging.nii.gz",
    "volume-0.nii",
    "BraTS20_Training_001_t1ce.nii.gz",
    "damask.nii.gz",
    "t2_haste.nii",
)


def is_mask(path: str) -> bool:
    return bool(mask_names(pa.array([path.lower()]))[0].as_py())


def ids(listing: Listing) -> list[str]:
    return listing.objects["volume_id"].to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", MASKS)
def test_masks(path: str) -> None:
    """C10."""
    assert is_mask(path)


@pytest.mark.parametrize("path", IMAGES)
def test_images(path: str) -> None:
    """C10: no honest image is lost."""
    assert not is_mask(path)


def fill(folder: Path) -> Path:
    for name in (*MASKS, *IMAGES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_who_insists_gets_them(tmp_path: Path) -> None:
    """C10: and a single file is what it is said to be."""
    archive = str(fill(tmp_path))
    listing = list_archive(archive)
    assert set(ids(listing)) == set(IMAGES)
    assert listing.skipped == {"label_mask": len(MASKS)}
    assert set(ids(list_archive(archive, include_masks=True))) == {*MASKS, *IMAGES}
    assert len(ids(list_archive(str(tmp_path / MASKS[0])))) == 1


def test_patterns_leave_out_what_they_match(tmp_path: Path) -> None:
    """C10: as --glob understands them, and before it."""
    archive = str(fill(tmp_path))
    listing = list_archive(archive, "*.nii.gz", exclude=["*masked*", "images*/**", "t2_*"])
    left = {name for name in IMAGES if name.endswith(".gz")} - {"T1_masked.nii.gz", "imagesTr/amos_0001.nii.gz"}
    assert set(ids(listing)) == left
    assert listing.skipped == {"label_mask": len(MASKS), "excluded": 3, "outside_glob": 1}


def test_the_masks_of_known_collections(shared_data: Path) -> None:
    """C10."""
    listing = list_archive(str(shared_data / "faults" / "masks_by_name"))
    assert ids(listing) == [
        "BraTS_001/BraTS_001_t1.nii.gz",
        "imagesVa/amos_001.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
    ]
    assert listing.skipped == {"label_mask": 3}
