"""List the volumes of an archive with one request, and count what is left out by rule.

    rule             leaves out
    hidden           paths with a part that begins with a dot: `._case.nii.gz`, `.cache/...`
    not_nifti_name   names that do not end in .nii or .nii.gz
    label_mask       files below a folder of segmentations: labelsTr, masks, ...
    outside_glob     paths that the given pattern does not match

The first rule that applies is the one that is counted.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from medret.errors import UsageError
from medret.storage import Location, is_store_failure

MASK_FOLDERS = frozenset(
    {
        "label",
        "labels",
        "labelstr",
        "labelsts",
        "labelsval",
        "mask",
        "masks",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
    }
)
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
    descriptions: the dataset.json files seen on the way, as paths below the archive.
    """

    archive_uri: str
    objects: tuple[ArchiveObject, ...]
    skipped: Mapping[str, int]
    descriptions: tuple[str, ...] = field(default=())

    @property
    def listed(self) -> int:
        """All objects, volumes or not."""
        return len(self.objects) + sum(self.skipped.values())


def list_archive(uri: str, pattern: str | None = None) -> Listing:
    """List an archive.

    uri: any fsspec URI or local path; of a folder, or of a single volume, which is then an archive of one.
    pattern: a glob. Without a slash it is matched against file names, else against paths below the archive, where `*`
    stays within a folder and `**` is any number of folders.
    Raises UsageError when there is nothing there, or no access.
    """
    matches = _matcher(pattern)
    location = Location(uri)
    try:
        found, single = _find(location)
    except Exception as error:
        if not is_store_failure(error):
            raise
        raise UsageError(f"archive {location.uri} cannot be listed: {error}") from error
    if not found:
        raise UsageError(f"archive {location.uri} does not exist or holds no objects; expected a folder of NIfTI files")

    objects: list[ArchiveObject] = []
    skipped: Counter[str] = Counter()
    for volume_id, detail in sorted(found.items()):
        rule = _skip_rule(volume_id, matches)
        if rule is not None:
            skipped[rule] += 1
            continue
        object_uri = location.uri if single else location.uri_of(volume_id)
        objects.append(
            ArchiveObject(
                volume_id, object_uri, int(detail.get("size") or 0), object_etag(detail), object_mtime(detail)
            )
        )
    descriptions = tuple(sorted(path for path in found if _is_description(path)))
    return Listing(location.uri, tuple(objects), dict(skipped), descriptions)


def _find(location: Location) -> tuple[dict[str, dict[str, Any]], bool]:
    """({path below the archive: detail}, whether the URI names a single object)."""
    if location.is_local and Path(location.root).is_dir():
        return dict(_walk(location.root, "", (os.path.realpath(location.root),))), False
    location.fs.invalidate_cache()
    found: dict[str, dict[str, Any]] = location.fs.find(location.root, detail=True)
    root = location.root
    if list(found) == [root]:
        return {posixpath.basename(root): found[root]}, True
    return {path[len(root) + 1 :]: detail for path, detail in found.items() if path.startswith(f"{root}/")}, False


def _walk(folder: str, below: str, chain: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files below a local folder, through links too (fsspec would leave linked folders out without a word).

    chain: real paths of this folder and of those it was reached through: a link back to one of them ends there.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in chain:
                    yield from _walk(entry.path, f"{below}{entry.name}/", (*chain, real))
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # a link to nothing: listed, and quarantined when it is read
                yield below + entry.name, {}
            else:
                yield below + entry.name, {"size": status.st_size, "mtime": status.st_mtime}


def _skip_rule(path: str, matches: re.Pattern[str] | None) -> str | None:
    parts = path.split("/")
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if not parts[-1].lower().endswith((".nii", ".nii.gz")):
        return "not_nifti_name"
    if any(part.lower() in MASK_FOLDERS for part in parts[:-1]):
        return "label_mask"
    if matches is not None and not matches.match(path):
        return "outside_glob"
    return None


def _matcher(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    anywhere = pattern if "/" in pattern else f"**/{pattern}"
    try:
        return re.compile(glob_translate(anywhere.removeprefix("./")))
    except (ValueError, re.error) as error:
        raise UsageError(f"pattern {pattern!r} is no glob that is understood: {error}") from error


def _is_description(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name == DESCRIPTION and "/" not in folder and not folder.startswith(".")


def object_etag(detail: Mapping[str, Any]) -> str | None:
    """The entity tag of an object in an fsspec listing, without its quotes; None where the store has none."""
    etag = detail.get("ETag") or detail.get("etag")
    return str(etag).strip('"') if etag else None


def object_mtime(detail: Mapping[str, Any]) -> str | None:
    """The time of the last change, under the names that stores give it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = detail.get(name)
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.astimezone(UTC).isoformat(timespec="microseconds")
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC).isoformat(timespec="microseconds")
        if isinstance(value, str) and value:
            return value
    return None
