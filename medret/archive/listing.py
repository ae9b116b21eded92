"""List the volumes of an archive with one request, and count what is left out by rule.

    rule             leaves out
    hidden           paths with a part that begins with a dot: `._case.nii.gz`, `.cache/...`
    no_access        folders that may not be entered, each counted as one object
    not_nifti_name   names that do not end in .nii or .nii.gz
    not_a_file       FIFOs, sockets and devices, whatever their name
    not_text_name    names that are not UTF-8, which no table could hold
    label_mask       segmentations, by the name of the file or of a folder (see `is_mask_name`)
    excluded         paths that match a pattern of `exclude`
    outside_glob     paths that do not match the given pattern

The first rule that applies is counted. A link to nothing is a volume that cannot be read.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from medret.errors import NotFoundError, UsageError
from medret.storage import Location, escaped, identity_of, is_text, reaching
from medret.storage.objects import Beat, with_stall_limit

_SURPRISING = ("no_access", "not_a_file", "not_text_name")
_SHOWN = 3  # example paths per rule
DESCRIPTION = "dataset.json"  # of the Medical Segmentation Decathlon, at the root or one folder below


@dataclass(frozen=True)
class ArchiveObject:
    """A volume as the store lists it. etag: without quotes, if the store has one. mtime: ISO 8601 in UTC."""

    volume_id: str
    uri: str
    size_bytes: int
    etag: str | None
    mtime: str | None


@dataclass(frozen=True)
class Listing:
    """Everything below an archive's prefix.

    objects: the volumes, sorted by id.
    skipped: rule -> number of objects that it left out (never 0).
    surprises: rule -> example paths, for the rules that users may not expect; names that are not text are escaped.
    descriptions: paths below the archive of the dataset.json files found.
    """

    archive_uri: str
    objects: tuple[ArchiveObject, ...]
    skipped: Mapping[str, int]
    descriptions: tuple[str, ...] = ()
    surprises: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def listed(self) -> int:
        """All objects, volumes or not."""
        return len(self.objects) + sum(self.skipped.values())


def list_archive(
    uri: str, pattern: str | None = None, *, exclude: Sequence[str] = (), include_masks: bool = False
) -> Listing:
    """List an archive.

    uri: any fsspec URI or local path, of a folder or of a single volume.
    pattern, exclude: globs. Without a slash they match file names, else paths below the archive, where `*` stays within
        a folder and `**` stands for any number of folders.
    include_masks: also list files whose names are those of masks.

    Raises UsageError for a URI or glob that is not understood, NotFoundError when nothing is there, StorageError when
    the archive cannot be read.
    """
    keep = [_matcher(pattern)] if pattern is not None else []
    drop = [_matcher(each) for each in exclude]
    location = Location(uri)
    entries = _find(location)
    if not entries:
        raise NotFoundError(
            f"archive {location.uri} does not exist or holds no objects; expected a folder of NIfTI files"
        )
    single = "" in entries
    if single:
        entries = {posixpath.basename(location.root): entries[""]}

    objects: list[ArchiveObject] = []
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for volume_id, entry in sorted(entries.items()):
        rule = _skip_rule(volume_id, entry, masks=include_masks or single)
        if rule is None and any(matches(volume_id) for matches in drop):
            rule = "excluded"
        if rule is None and not all(matches(volume_id) for matches in keep):
            rule = "outside_glob"
        if rule is not None:
            skipped[rule].append(volume_id)
            continue
        known = identity_of(entry.detail)
        object_uri = location.uri if single else location.uri_of(volume_id)
        objects.append(ArchiveObject(volume_id, object_uri, known.size_bytes, known.etag, known.mtime))
    return Listing(
        location.uri,
        tuple(objects),
        {rule: len(paths) for rule, paths in skipped.items()},
        tuple(sorted(path for path in entries if _is_description(path))),
        {rule: tuple(map(escaped, skipped[rule][:_SHOWN])) for rule in _SURPRISING if rule in skipped},
    )


def _find(location: Location) -> dict[str, Entry]:
    """All objects, by path below the archive; by "" if the URI names a single object."""
    if location.is_local:
        return walk(location.root)
    return {path: Entry(detail) for path, detail in location.details().items()}


def _skip_rule(path: str, entry: Entry, *, masks: bool) -> str | None:
    """The rule that leaves the object out, apart from the user's patterns. masks: do not leave out masks."""
    parts = path.split("/")
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if entry.rule == "no_access":
        return entry.rule
    if not parts[-1].lower().endswith((".nii", ".nii.gz")):
        return "not_nifti_name"
    if entry.rule is not None:
        return entry.rule
    if not is_text(path):
        return "not_text_name"
    return "label_mask" if not masks and is_mask_name(path) else None


def _matcher(pattern: str) -> Callable[[str], object]:
    anywhere = pattern if "/" in pattern else f"**/{pattern}"
    try:
        return re.compile(glob_translate(anywhere.removeprefix("./"))).match
    except (ValueError, re.error) as error:
        raise UsageError(f"pattern {pattern!r} is not a valid glob: {error}") from error


def _is_description(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name == DESCRIPTION and "/" not in folder and not folder.startswith(".")


@dataclass(frozen=True)
class Entry:
    """An object in a listing. detail: in fsspec's words. rule: why it cannot be a volume, if the listing shows that."""

    detail: Mapping[str, Any]
    rule: str | None = None


def walk(root: str) -> dict[str, Entry]:
    """Everything below a local folder, by path; by "" if `root` is a file.

    It follows links, walks no circle and opens no file. fsspec would silently leave out linked folders, and fail on a
    single folder without permission. Raises NotFoundError if nothing is there, UsageError if it is neither folder nor
    file, and StorageError if a folder does not answer for minutes or cannot be listed for a reason other than its
    permissions: a broken mount must not look like an archive that shrank.
    """
    root = root or "/"
    with reaching(root, "listed"):
        try:
            return with_stall_limit(lambda beat: _walk(root, beat), root)
        except FileNotFoundError as error:
            raise NotFoundError(f"archive {root} does not exist; expected a folder of NIfTI files") from error


def _walk(root: str, beat: Beat) -> dict[str, Entry]:
    status = Path(root).stat()
    if stat.S_ISREG(status.st_mode):
        return {"": _file(status)}
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"archive {root} is neither a folder nor a file")
    entries: dict[str, Entry] = {}
    # Each folder with its real path and those of the folders above it: a link back to one of them is not followed.
    folders: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while folders:
        below, chain = folders.pop()
        try:
            with os.scandir(f"{root}/{below}") as scanned:
                names = [entry.name for entry in scanned]
        except FileNotFoundError:  # removed since its parent was listed
            continue
        except OSError as error:
            if not below or not (isinstance(error, PermissionError) or _is_hidden(below)):
                raise
            entries[below.rstrip("/")] = Entry({}, "no_access")
            continue
        for name in names:
            path = below + name
            try:
                status = Path(root, path).stat()
            except OSError:  # a link to nothing, to itself or to a forbidden place: reported when it is read
                entries[path] = Entry({})
                continue
            if stat.S_ISDIR(status.st_mode):
                real = os.path.realpath(f"{root}/{path}")
                if real not in chain:
                    folders.append((f"{path}/", (*chain, real)))
            else:
                entries[path] = _file(status)
            beat()
    return entries


def _file(status: os.stat_result) -> Entry:
    rule = None if stat.S_ISREG(status.st_mode) else "not_a_file"
    return Entry({"size": status.st_size, "mtime": status.st_mtime}, rule)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


_FOLDER = re.compile(
    r"(gt[_-]?)?(label|mask|seg|segmentation|ground[_-]?truth|gt|annotation)s?"
    r"([_-]?(tr|ts|te|va|val|train|training|test|testing|validation))?"
)
_LAST_WORD = re.compile(
    r"(.*[_.+ -])?((seg|segmentation|mask|label)s?|segm|msk|labelmap|gt|ground_?truth|dseg|probseg|aseg|synthseg)"
)
_NUMBERED = re.compile(r"(segmentation|seg|label|mask)s?[_ -]?\d+")


def is_mask_name(path: str) -> bool:
    """Whether a file's name, or that of a folder above it, names a segmentation, as public collections name theirs.

        MSD, nnU-Net, AMOS          labelsTr/, labelsTs/, labelsVa/, gt_segmentations/
        TotalSegmentator            CASE/segmentations/liver.nii.gz
        KiTS                        case_00000/segmentation.nii.gz
        LiTS, Synapse               segmentation-0.nii, label0001.nii.gz
        BraTS, ISLES, ACDC, MM-WHS  CASE_seg.nii.gz, CASE-seg.nii.gz, CASE_msk.nii.gz, CASE_gt.nii.gz, CASE_label.nii.gz
        BIDS derivatives            SUBJECT_desc-brain_mask.nii.gz, SUBJECT_dseg.nii.gz, SUBJECT_label-GM_probseg.nii.gz
        FreeSurfer, 3D Slicer       aparc+aseg.nii.gz, CASE_synthseg.nii.gz, CASE-label.nii.gz

    Only a whole last word counts: `segmented_liver.nii.gz`, `T1_masked.nii.gz` and `mask_ct.nii.gz` are images.
    path: below the archive.
    """
    *folders, name = path.lower().split("/")
    stem = name.removesuffix(".gz").removesuffix(".nii")
    named = _LAST_WORD.fullmatch(stem) or _NUMBERED.fullmatch(stem)
    return named is not None or any(_FOLDER.fullmatch(folder) for folder in folders)
