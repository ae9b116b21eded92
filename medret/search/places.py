"""Where a volume is read: below the archive, whatever the store says.

Whoever made a store chose every URI in its ledger, so a volume is read from the archive and never from just anywhere:
see docs/decisions/0012-a-store-names-no-place-to-read.md.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import urlsplit

from medret.storage import normalise_uri
from medret.storage.objects import read_file
from medret.storage.uris import is_text, scheme_of

SUFFIXES = (".nii", ".nii.gz")
PACKED_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")  # of a DICOM series in one object
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs"})  # one endpoint for all of their buckets


class Refused(str):
    """A URI that is not read. reason: why not, and what a person can do."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, uri: str, reason: str) -> Self:
        """Make it from a URI and the reason."""
        refused = super().__new__(cls, uri)
        refused.reason = reason
        return refused


def place_of(volume_id: str, uri: str, *, archive: str, store: str, user_archive: str | None) -> str:
    """Where a volume is read, or `Refused`.

    uri: from the ledger. archive: from the manifest. store: URI of the store. user_archive: the archive that the user
    named; if there is one, volumes are read from it whatever the store says.
    """
    if not _is_path_below(volume_id):
        return Refused(uri, "its id is not a path below an archive")
    place = _place_of(volume_id, uri, archive, store, user_archive)
    named = volume_id.lower().endswith((*SUFFIXES, *PACKED_SUFFIXES))
    if named or isinstance(place, Refused) or scheme_of(place) or not _is_other_file(Path(place)):
        return place
    return Refused(uri, "it is neither NIfTI, by its name, nor DICOM")


def _place_of(volume_id: str, uri: str, archive: str, store: str, user_archive: str | None) -> str:
    if user_archive is not None:
        root = normalise_uri(user_archive)
        return root if uri == archive and _is_single(root, volume_id) else f"{root}/{volume_id}"
    if uri != f"{archive}/{volume_id}" and not (uri == archive and _is_single(archive, volume_id)):
        return Refused(uri, f"the store says that it lies outside its archive {archive}")
    if not _is_near(archive, store):
        return Refused(uri, f"not read from {archive}, as only the store names it; to read it, add --archive {archive}")
    return uri


def _is_other_file(path: Path) -> bool:
    """Whether a path is that of a file that is not DICOM."""
    from medret.archive.dicom_head import HEAD_BYTES, read_head

    try:
        return path.is_file() and read_head(read_file(str(path), end=HEAD_BYTES)) is None
    except OSError:
        return True


def _is_path_below(volume_id: str) -> bool:
    return is_text(volume_id) and "\0" not in volume_id and not {"", ".", ".."} & set(volume_id.split("/"))


def _is_single(archive: str, volume_id: str) -> bool:
    """Whether the archive is that one volume."""
    return archive.rpartition("/")[2] == volume_id


def _is_near(archive: str, store: str) -> bool:
    """Whether an archive is on this machine's disks, or on the server that the store itself comes from."""
    scheme = scheme_of(archive)
    if not scheme:
        return PurePosixPath(archive).is_absolute()
    if scheme != scheme_of(store):
        return False
    return scheme in BUCKETS or urlsplit(archive).netloc == urlsplit(store).netloc
