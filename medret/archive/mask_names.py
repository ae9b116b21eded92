"""Which paths name a segmentation instead of an image, as public collections name theirs.

    MSD, nnU-Net, AMOS          labelsTr/, labelsTs/, labelsVa/, gt_segmentations/
    TotalSegmentator            CASE/segmentations/liver.nii.gz
    KiTS                        case_00000/segmentation.nii.gz
    LiTS, Synapse               segmentation-0.nii, label0001.nii.gz
    BraTS, ISLES, ACDC, MM-WHS  CASE_seg.nii.gz, CASE-seg.nii.gz, CASE_msk.nii.gz, CASE_gt.nii.gz, CASE_label.nii.gz
    BIDS derivatives            SUBJECT_desc-brain_mask.nii.gz, SUBJECT_dseg.nii.gz, SUBJECT_label-GM_probseg.nii.gz
    FreeSurfer, 3D Slicer       aparc+aseg.nii.gz, CASE_synthseg.nii.gz, CASE-label.nii.gz

Only a whole last word counts: `segmented_liver.nii.gz`, `T1_masked.nii.gz` and `mask_ct.nii.gz` are images.
"""

from __future__ import annotations

import re

_FOLDER = re.compile(
    r"(gt[_-]?)?(label|mask|seg|segmentation|ground[_-]?truth|gt|annotation)s?"
    r"([_-]?(tr|ts|te|va|val|train|training|test|testing|validation))?"
)
_LAST_WORD = re.compile(
    r"(.*[_.+ -])?((seg|segmentation|mask|label)s?|segm|msk|labelmap|gt|ground_?truth|dseg|probseg|aseg|synthseg)"
)
_NUMBERED = re.compile(r"(segmentation|seg|label|mask)s?[_ -]?\d+")


def is_mask_name(path: str) -> bool:
    """Whether a path below an archive is that of a mask: by its file's name, or that of a folder."""
    *folders, name = path.lower().split("/")
    stem = name.removesuffix(".gz").removesuffix(".nii")
    named = _LAST_WORD.fullmatch(stem) or _NUMBERED.fullmatch(stem)
    return named is not None or any(_FOLDER.fullmatch(folder) for folder in folders)
