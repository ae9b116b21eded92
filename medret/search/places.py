"""Where the volumes of a snapshot may be read from: the archive, never just anywhere that a store names.

Whoever made a store chose every URI in it; see docs/decisions/0012-a-store-names-no-place-to-read.md.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Self
from urllib.parse import urlsplit

from medret.storage import normalise_uri
from medret.storage.uris import is_text, scheme_of

SUFFIXES = (".nii", ".nii.gz")  # of everything that an archive's listing accepts as a volume
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs"})  # one endpoint for all of their buckets


class Refused(str):
    """A URI that is not read; reason: why, and what a person can do."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, uri: str, reason: str) -> Self:
        """A URI, and why it is not read."""
        made = super().__new__(cls, uri)
        made.reason = reason
        return made


def place_of(volume_id: str, uri: str, *, archive: str, store: str, user_archive: str | None) -> str:
    """Where a volume is read, or `Refused`.

    uri: from the ledger. archive: from the manifest. store: its URI. user_archive: the archive that the user
    named; then no URI of the store is read.
    """
    if not _is_volume_path(volume_id):
        return Refused(uri, "its id is not the path of a NIfTI file below an archive")
    if user_archive is not None:
        root = normalise_uri(user_archive)
        return root if _is_single(root, volume_id) else f"{root}/{volume_id}"
    if uri != f"{archive}/{volume_id}" and not (uri == archive and _is_single(archive, volume_id)):
        return Refused(uri, f"the store says that it lies outside its archive {archive}")
    if not _is_near(archive, store):
        return Refused(uri, f"not read from {archive}, as only the store names it; to read it, add --archive {archive}")
    return uri


def _is_volume_path(volume_id: str) -> bool:
    parts = volume_id.split("/")
    plain = is_text(volume_id) and "\0" not in volume_id and not {"", ".", ".."} & set(parts)
    return plain and volume_id.lower().endswith(SUFFIXES)


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
