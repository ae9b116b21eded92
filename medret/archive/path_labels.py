"""Labels of public collections that say in their paths what a volume is: KiTS, BraTS and TotalSegmentator.

    KiTS              case_00000/imaging.nii.gz
    TotalSegmentator  s0000/ct.nii.gz, s0000/mri.nii.gz
    BraTS to 2019     Brats18_2013_2_1/Brats18_2013_2_1_flair.nii.gz
    BraTS to 2021     BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz
    BraTS from 2023   BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz

The subject is the folder, in BraTS without the time point (-000, or _1 up to 2019). Any other tree gets no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class _Collection:
    """A collection. word: in all of its paths. path: a regular expression whose groups are labels, see `path_labels`.

    labels: of all volumes.
    """

    word: str
    path: str
    labels: Mapping[str, str]


_BRATS = {"modality": "MRI", "body_region": "Head", "organ": "Brain"}
_SEQUENCE = r"/(?P<start>brats[^/]*)[_-](?P<sequence>t1|t1ce|t1gd|t1c|t1n|t2|t2w|t2f|flair)\.nii(?:\.gz)?$"
_COLLECTIONS = (
    _Collection(
        "imaging.nii",
        r"(?:^|/)(?P<subject>case_\d{5})/imaging\.nii(?:\.gz)?$",
        {"modality": "CT", "body_region": "Abdomen", "organ": "Kidney"},
    ),
    _Collection("ct.nii", r"(?:^|/)(?P<subject>s\d{4})/ct\.nii(?:\.gz)?$", {"modality": "CT"}),
    _Collection("mri.nii", r"(?:^|/)(?P<subject>s\d{4})/mri\.nii(?:\.gz)?$", {"modality": "MRI"}),
    _Collection(
        "brats",
        r"(?i)(?:^|/)(?P<folder>(?P<subject>brats(?:1[789]_[^/]+|(?:-[a-z]+)+-\d+))[_-](?P<time_point>\d{1,3}))"
        + _SEQUENCE,
        _BRATS,
    ),
    _Collection(
        "brats",
        r"(?i)(?:^|/)(?P<folder>(?P<subject>brats(?:20_[^/]+|20\d\d_\d+|(?:-[a-z]+)+-\d+)))" + _SEQUENCE,
        _BRATS,
    ),
)


def path_labels(ids: pa.ChunkedArray) -> Iterator[pa.Table]:
    """The labels that paths give: per collection a table of text with volume_id, labels and metadata."""
    for collection in _COLLECTIONS:
        likely = ids.filter(pc.match_substring(ids, collection.word, ignore_case=True))
        groups = pc.extract_regex(likely, collection.path)
        columns = {field.name: pc.struct_field(groups, field.name) for field in groups.type}
        ours = pc.is_valid(groups)
        if "folder" in columns:  # the file repeats the name of its folder
            ours = pc.and_(ours, pc.equal(columns.pop("folder"), columns.pop("start")))
        labels = {name: pa.chunked_array([pa.repeat(word, len(likely))]) for name, word in collection.labels.items()}
        yield pa.table({"volume_id": likely, **columns, **labels}).filter(pc.fill_null(ours, False))
