"""List the volumes of an archive with one request, and count what is left out by rule.

    rule             leaves out
    hidden           paths with a part that begins with a dot: `._case.nii.gz`, `.cache/...`
    no_access        folders that may not be entered, each counted as one object
    not_nifti_name   names that do not end in .nii or .nii.gz
    not_a_file       FIFOs, sockets and devices, whatever their name
    not_text_name    names that are not UTF-8, which no table could hold
    label_mask       segmentations, by the name of the file or of a folder (see `mask_names`)
    excluded         paths that a pattern of `exclude` matches
    outside_glob     paths that the given pattern does not match

The first rule that applies is the one that is counted. A link that leads nowhere is a volume that cannot be read.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fsspec.utils import glob_translate

from medret.archive.mask_names import is_mask_name
from medret.archive.walk import Entry, walk
from medret.errors import NotFoundError, UsageError
from medret.storage import Location, escaped, identity_of, is_text

_SURPRISING = ("no_access", "not_a_file", "not_text_name")
_SHOWN = 3  # paths of each of these
DESCRIPTION = "dataset.json"  # of the Medical Segmentation Decathlon, at the root or one folder below


@dataclass(frozen=True)
class ArchiveObject:
    """A volume as the store lists it. etag: without quotes, where the store has one. mtime: ISO 8601 in UTC."""

    volume_id: str
    uri: str
    size_bytes: int
    etag: str | None
    mtime: str | None


@dataclass(frozen=True)
class Listing:
    """Everything below an archive's prefix.

    objects: the volumes, in the order of their ids. skipped: rule -> how many objects it left out (never 0).
    surprises: rule -> some paths that it left out, where a person may not expect it; names that are no text escaped.
    descriptions: the dataset.json files seen on the way, as paths below the archive.
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

    uri: any fsspec URI or local path; of a folder, or of a single volume, which is then an archive of one.
    pattern, exclude: globs. Without a slash they are matched against file names, else against paths below the archive,
    where `*` stays within a folder and `**` is any number of folders. include_masks: what is named as a mask is a
    volume.
    Raises UsageError for a URI or glob that is not understood, NotFoundError when there is nothing, StorageError when
    the archive cannot be read.
    """
    keep = [_matcher(pattern)] if pattern is not None else []
    drop = [_matcher(each) for each in exclude]
    location = Location(uri)
    found = _find(location)
    if not found:
        raise NotFoundError(
            f"archive {location.uri} does not exist or holds no objects; expected a folder of NIfTI files"
        )
    single = "" in found
    if single:
        found = {posixpath.basename(location.root): found[""]}

    objects: list[ArchiveObject] = []
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for volume_id, entry in sorted(found.items()):
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
        tuple(sorted(path for path in found if _is_description(path))),
        {rule: tuple(map(escaped, skipped[rule][:_SHOWN])) for rule in _SURPRISING if rule in skipped},
    )


def _find(location: Location) -> dict[str, Entry]:
    """Everything there, by its path below the archive; by "" where the URI names a single object."""
    if location.is_local:
        return walk(location.root)
    return {path: Entry(detail) for path, detail in location.details().items()}


def _skip_rule(path: str, entry: Entry, *, masks: bool) -> str | None:
    """What the object itself says, whatever is asked for. masks: are volumes."""
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
        raise UsageError(f"pattern {pattern!r} is no glob that is understood: {error}") from error


def _is_description(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name == DESCRIPTION and "/" not in folder and not folder.startswith(".")
