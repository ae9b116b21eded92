"""Labels from paths, and from the files that BIDS puts beside the volumes.

BIDS data sets (bids-specification.readthedocs.io) name subject and kind of image in every path:

    sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_T1w.nii.gz

is of subject 01 and modality MRI, with the metadata session 2, datatype anat, suffix T1w and acq mprage. A volume
counts if its name begins with that of its subject's folder, or if the folder lies beside a dataset_description.json or
a participants.tsv. The columns of participants.tsv are metadata of all volumes of the participant.

Some public collections say in their paths what a volume is, too:

    KiTS              case_00000/imaging.nii.gz
    TotalSegmentator  s0000/ct.nii.gz, s0000/mri.nii.gz
    BraTS to 2019     Brats18_2013_2_1/Brats18_2013_2_1_flair.nii.gz
    BraTS to 2021     BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz
    BraTS from 2023   BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz

The subject is the folder, in BraTS without the time point (-000, or _1 up to 2019). Any other tree gets no labels.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.label_table import read_table
from medret.archive.skip_rules import RAW_FOLDERS
from medret.errors import StorageError, UsageError
from medret.schemas import LABELS
from medret.vocabularies import modality_of

_ID_COLUMN = "participant_id"
_OURS = ("volume_id", "data_set")  # columns of the tables that participants are joined to

_STAGES = rf"(?:{'|'.join(RAW_FOLDERS)}|sourcedata|derivatives(?:/[^/]+)?)"
# data_set: the folder of the data set, with a slash. stage: a folder in it that holds images of the same subjects.
_PATH = (
    rf"(?s)^(?P<data_set>(?:[^/]+/)*?)(?P<stage>(?:{_STAGES}/)?)"
    r"(?P<folder>sub-(?P<subject>[^/_]+))/(?:ses-(?P<session>[^/_]+)/)?(?:(?P<datatype>[a-z]+)/)?(?:[^/]+/)*(?P<name>[^/]+)$"
)
_STAGE = re.compile(rf"(?:^|(?<=/)){_STAGES}/$")
_NAME = r"^sub-[^_.]+(?P<parts>(?:_[A-Za-z0-9]+-[^_.]+)*(?:_[A-Za-z0-9]+)?)(?:\..*)?$"
_OF_MRI = frozenset({"anat", "func", "dwi", "fmap", "perf", "mrs"})


def bids_labels(
    ids: pa.ChunkedArray, folders: Sequence[str], participants: Mapping[str, pa.Table]
) -> Iterator[pa.Table]:
    """The labels that paths and participants.tsv files give, as tables of text, the more reliable first.

    folders: those with a dataset_description.json or participants.tsv, below the archive; "" for the archive itself.
    participants: folder -> cells of its participants.tsv. The tables have the columns volume_id, data_set (of the
    first), labels and metadata.
    """
    ids = ids.filter(pc.match_substring(ids, "sub-"))
    found = pc.extract_regex(ids, _PATH)
    whole = pa.table({"volume_id": ids, **{field.name: pc.struct_field(found, field.name) for field in found.type}})
    whole = whole.filter(_is_bids(whole, folders))
    parts = pc.struct_field(pc.extract_regex(whole["name"], _NAME), "parts")
    kinds = pc.binary_join_element_wise(whole["datatype"], pc.fill_null(parts, ""), "/").combine_chunks()
    kinds = kinds.dictionary_encode()  # many volumes, few kinds
    named = [_entities(*kind.split("/")) for kind in kinds.dictionary.to_pylist()]
    columns = {
        name: pa.array([each.get(name) for each in named], pa.string()).take(kinds.indices)
        for name in sorted({name for each in named for name in each})
    }
    sessions = pc.if_else(pc.equal(whole["session"], ""), None, whole["session"])
    columns["session"] = pc.coalesce(sessions, columns.get("session", pa.nulls(whole.num_rows, pa.string())))
    data_sets = pc.utf8_rtrim(whole["data_set"], "/")
    yield pa.table({"volume_id": whole["volume_id"], "data_set": data_sets, "subject": whole["subject"], **columns})
    yield from _of_participants(whole, participants)


def _is_bids(table: pa.Table, folders: Sequence[str]) -> pa.ChunkedArray:
    """Whether each row is of a BIDS data set, by its own name or by the folder above its subject.

    A name that begins with another subject than its folder is of nobody.
    """
    start = pc.struct_field(pc.extract_regex(table["name"], r"^(?P<start>sub-[^_.]+)[_.]"), "start")
    known = pa.array([f"{folder}/" if folder else "" for folder in folders], pa.string())
    above = [table["data_set"], pc.binary_join_element_wise(table["data_set"], table["stage"], "")]
    beside = pc.or_(*(pc.is_in(folder, known) for folder in above))
    return pc.or_(pc.fill_null(pc.equal(start, table["folder"]), False), pc.and_(pc.is_null(start), beside))


def _entities(datatype: str, parts: str) -> dict[str, str]:
    """Metadata and modality of a kind of file. parts: of its name, such as `_ses-2_acq-mprage_T1w`."""
    words = parts.split("_")[1:]
    found = {key: value for key, _, value in (word.partition("-") for word in words) if value}
    suffix = words[-1] if words and "-" not in words[-1] else ""
    session = found.pop("ses", None)
    modality = _modality(datatype, suffix)
    named = {"session": session, "datatype": datatype, "suffix": suffix, "modality": modality}
    return {name: value for name, value in named.items() if value} | {
        name: value for name, value in found.items() if name not in (*named, *LABELS)
    }


def _modality(datatype: str, suffix: str) -> str | None:
    for word in (suffix, datatype):
        if (modality := {"ct": "CT", "pet": "PET"}.get(word.lower())) is not None:
            return modality
    return "MRI" if datatype in _OF_MRI else modality_of(suffix)


def _of_participants(volumes: pa.Table, participants: Mapping[str, pa.Table]) -> Iterator[pa.Table]:
    """Per participants.tsv, its columns for all volumes of its participants."""
    tables, keys = [], []
    for folder, cells in participants.items():
        data_set = _STAGE.sub("", f"{folder}/" if folder else "")
        subjects = pc.replace_substring_regex(cells[_ID_COLUMN], "^sub-", "")
        tables.append(
            cells.drop_columns([each for each in cells.column_names if each.lower() in (_ID_COLUMN, *_OURS, *LABELS)])
        )
        keys.append(pc.binary_join_element_wise(data_set, subjects, "").combine_chunks())
    ours = pc.binary_join_element_wise(volumes["data_set"], volumes["subject"], "")
    rows = pc.fill_null(pc.index_in(ours, pa.concat_arrays([pa.array([], pa.string()), *keys])), -1).to_numpy()
    ends = np.cumsum([len(each) for each in keys])
    for cells, first, last in zip(tables, [0, *ends], ends, strict=False):
        chosen = np.flatnonzero((rows >= first) & (rows < last))
        taken = cells.combine_chunks().take(pa.array(rows[chosen] - first))
        yield taken.add_column(0, "volume_id", volumes["volume_id"].take(pa.array(chosen)))


def read_participants(archive_uri: str, paths: Sequence[str]) -> tuple[dict[str, pa.Table], dict[str, str]]:
    """Read participants.tsv files: folder -> cells, and path -> reason for the files ignored.

    paths: below the archive.
    """
    tables: dict[str, pa.Table] = {}
    ignored: dict[str, str] = {}
    for path in paths:
        try:
            cells = read_table(f"{archive_uri}/{path}").cells
        except (UsageError, StorageError) as error:
            ignored[path] = str(error)
            continue
        if _ID_COLUMN in cells.column_names:
            tables[posixpath.dirname(path)] = cells
        else:
            ignored[path] = f"it has no column {_ID_COLUMN}; its columns are {', '.join(cells.column_names)}"
    return tables, ignored


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
