"""Decide by rules what a listing leaves out. Pure functions over Arrow columns.

    rule             leaves out
    hidden           paths with a part that begins with a dot: `._case.nii.gz`, `.cache/...`
    no_access        folders that may not be entered, each counted as one object
    not_a_volume     what is neither NIfTI by its name nor DICOM by its first bytes (names of other kinds are not read)
    not_an_image     DICOM objects that are no images of a volume: DICOMDIR, secondary captures, reports, ...
    localizer        DICOM images that only show where others lie
    name_taken       series in a folder whose name is that of a folder in it, which is another volume
    not_a_file       FIFOs, sockets and devices, whatever their name
    not_text_name    names that are not UTF-8, which no table could hold
    label_mask       segmentations, by the name of the file or of a folder (see `mask_names`)
    excluded         paths that match a pattern of `exclude`
    outside_glob     paths that do not match the given pattern
    derivatives      volumes in the folder derivatives/ of a BIDS data set (see `in_derivatives`)

The first rule that applies is counted. What DICOM objects are is found out last, by looks (medret.archive.grouping).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate

from medret.archive.series import candidates, packed
from medret.errors import UsageError
from medret.schemas import OBJECTS
from medret.storage import escaped, identity_of, is_text
from medret.visible import visible

NOT_A_VOLUME = "not_a_volume"
FOUND_ROWS = 1 << 12  # of a part of a listing: as Python's objects, each row takes several times what it takes then
Matcher = Callable[[str], object]

# Everything that a listing finds, volume or not. volume_id: its path below the archive, escaped if it is not text; ""
# if the archive is a single object. rule: why it cannot be a volume, if the listing itself shows that.
FOUND = pa.schema(
    [*(OBJECTS.field(name) for name in ("volume_id", "size_bytes", "etag", "mtime")), pa.field("rule", pa.string())]
)


def found(path: str, detail: Mapping[str, Any], rule: str | None = None) -> tuple[Any, ...]:
    """A row of FOUND. detail: of the object, in fsspec's words."""
    known = identity_of(detail)
    if not is_text(path):
        path, rule = escaped(path), rule or "not_text_name"
    return path, known.size_bytes, known.etag, known.mtime, rule


def found_tables(rows: Iterable[tuple[Any, ...]]) -> Iterator[pa.Table]:
    """Rows of FOUND as tables of at most FOUND_ROWS rows."""
    rows = iter(rows)
    while part := list(islice(rows, FOUND_ROWS)):
        yield pa.table([list(column) for column in zip(*part, strict=True)], schema=FOUND)


def rules_of(table: pa.Table, *, masks: bool, keep: Sequence[Matcher] = (), drop: Sequence[Matcher] = ()) -> pa.Array:
    """The rule that leaves out each row of FOUND; null for a NIfTI file, and for what may be DICOM.

    masks: do not leave out segmentations. keep, drop: see `matcher`; a volume must match all of `keep`, none of `drop`.
    What may be an instance of a series matches by its own path or by that of its folder.
    """
    paths, lower = table["volume_id"], pc.utf8_lower(table["volume_id"])
    nifti = is_nifti(lower)
    cases = {
        "hidden": pc.match_substring_regex(paths, r"(^|/)\."),
        "no_access": pc.equal(table["rule"], "no_access"),
        "not_an_image": pc.match_substring_regex(lower, r"(^|/)dicomdir$"),
        "not_a_volume": pc.invert(pc.or_(pc.or_(nifti, candidates(lower)), packed(lower))),
        "not_a_file": pc.equal(table["rule"], "not_a_file"),
        "not_text_name": pc.equal(table["rule"], "not_text_name"),
    }
    if not masks:
        cases["label_mask"] = mask_names(lower)
    conditions = pc.make_struct(*(pc.fill_null(case, False) for case in cases.values()), field_names=list(cases))
    rules = pc.case_when(conditions, *cases)
    if not (keep or drop):
        return rules
    rows = zip(paths.to_pylist(), rules.to_pylist(), pc.invert(nifti).to_pylist(), strict=True)
    by_pattern = [rule or _pattern_rule(path, keep, drop, in_series=in_series) for path, rule, in_series in rows]
    return pa.chunked_array([by_pattern], pa.string())


def is_nifti(lower: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each path is that of a NIfTI file. lower: in lower case."""
    return pc.match_substring_regex(lower, r"\.nii(\.gz)?$")


def _pattern_rule(path: str, keep: Sequence[Matcher], drop: Sequence[Matcher], *, in_series: bool) -> str | None:
    paths = [path, folder] if in_series and (folder := path.rpartition("/")[0]) else [path]
    if any(matches(each) for matches in drop for each in paths):
        return "excluded"
    return None if all(any(map(matches, paths)) for matches in keep) else "outside_glob"


def first_paths(paths: pa.ChunkedArray, most: int) -> list[str]:
    """The first paths in alphabetical order."""
    first = pc.select_k_unstable(paths, most, [("", "ascending")])
    return [str(path) for path in paths.take(first).to_pylist()]


def suffixes_of(paths: pa.ChunkedArray) -> dict[str, int]:
    """How many paths have each suffix, in lower case; "" for those without one."""
    names = pc.replace_substring_regex(pc.utf8_lower(paths), r"(?s)^.*/", "")
    suffixes = pc.struct_field(pc.extract_regex(names, r"[^.](?P<suffix>\.[a-z][a-z0-9_]{0,9}(?:\.gz)?)$"), "suffix")
    return {row["values"]: row["counts"] for row in pc.fill_null(suffixes, "").value_counts().to_pylist()}


def matcher(pattern: str) -> Matcher:
    """A function that tells whether a path below the archive matches a glob; raises UsageError."""
    if not is_text(pattern):
        raise UsageError(f"pattern {visible(pattern)} is not UTF-8 text")
    anywhere = pattern if "/" in pattern else f"**/{pattern}"
    try:
        return re.compile(glob_translate(anywhere.removeprefix("./"))).match
    except (ValueError, re.error) as error:
        raise UsageError(f"pattern {pattern!r} is not a valid glob: {error}") from error


RAW_FOLDERS = ("rawdata", "raw", "bids")  # of a BIDS data set, if its subjects do not lie directly in its folder


def in_derivatives(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each volume lies in the folder derivatives/ beside the subjects (sub-01/, rawdata/sub-01/) of a data set.

    What lies there was made from their images, or is none. paths: of all volumes below the archive, sorted.
    """
    likely = pc.match_substring(paths, "derivatives/")
    if not pc.any(likely).as_py():
        return likely
    folders = pc.replace_substring_regex(paths, r"(?s)^((?:[^/]+/)*?)derivatives/.*$", r"/\1")
    folders = pc.if_else(pc.starts_with(folders, "/"), folders, None)  # ids do not begin with a slash
    of_bids = [one for one in pc.unique(folders).drop_null().to_pylist() if _has_subjects(paths, one[1:])]
    return pc.is_in(folders, pa.array(of_bids, pa.string()))


def _has_subjects(paths: pa.ChunkedArray, folder: str) -> bool:
    for start in (f"{folder}sub-", *(f"{folder}{raw}/sub-" for raw in RAW_FOLDERS)):
        place = bisect_left(paths, start, key=lambda one: one.as_py())
        if place < len(paths) and "/" in (path := paths[place].as_py()).removeprefix(start) and path.startswith(start):
            return True
    return False


_FOLDER = (
    r"(^|/)(gt[_-]?)?(label|mask|seg|segmentation|ground[_-]?truth|gt|annotation)s?"
    r"([_-]?(tr|ts|te|va|val|train|training|test|testing|validation))?/"
)
_LAST_WORD = (
    r"(^|/)([^/]*[_.+ -])?((seg|segmentation|mask|label)s?|segm|msk|labelmap|gt|ground_?truth|dseg|probseg|aseg|"
    r"synthseg|defacemask)(\.nii)?(\.gz)?$"
)
_NUMBERED = r"(^|/)((segmentation|seg|label|mask)s?[_ -]?|[a-z]+_instance-\d+_annotation-)\d+(\.nii)?(\.gz)?$"
_MASK = f"({_FOLDER})|({_LAST_WORD})|({_NUMBERED})"


def mask_names(paths: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whether each file, or a folder above it, is named as public collections name segmentations.

        MSD, nnU-Net, AMOS          labelsTr/, labelsTs/, labelsVa/, gt_segmentations/
        TotalSegmentator            CASE/segmentations/liver.nii.gz
        KiTS                        case_00000/segmentation.nii.gz, kidney_instance-1_annotation-1.nii.gz
        LiTS, Synapse               segmentation-0.nii, label0001.nii.gz
        BraTS, ISLES, ACDC, MM-WHS  CASE_seg.nii.gz, CASE-seg.nii.gz, CASE_msk.nii.gz, CASE_gt.nii.gz, CASE_label.nii.gz
        BIDS                        SUBJECT_desc-brain_mask.nii.gz, SUBJECT_dseg.nii.gz, SUBJECT_label-GM_probseg.nii.gz
        FreeSurfer, 3D Slicer       aparc+aseg.nii.gz, CASE_synthseg.nii.gz, CASE-label.nii.gz

    Only a whole last word counts: `segmented_liver.nii.gz`, `T1_masked.nii.gz` and `mask_ct.nii.gz` are images.
    paths: below the archive, in lower case.
    """
    return pc.match_substring_regex(paths, _MASK)
