"""The bytes of an object that should be a volume, no more of them than a volume may have."""

from __future__ import annotations

from medret.storage import StoredObject, reaching
from medret.volume.limits import MIB, Limits
from medret.volume.nifti import START_BYTES, judge_start

JUDGED_FIRST_BYTES = 64 * MIB  # from here on a second request costs little beside the first


def read_judged(source: StoredObject, size_bytes: int, limits: Limits) -> bytes:
    """All bytes of an object; a large one only if its first bytes say that they are those of a volume.

    Raises VolumeError, or whatever the object's filesystem raises.
    """
    if size_bytes > JUDGED_FIRST_BYTES:
        judge_start(source.read(0, START_BYTES), size_bytes, limits)
    return source.read()


def fetch_volume(uri: str, limits: Limits) -> bytes:
    """All bytes of the object behind a URI; raises VolumeError, FileNotFoundError, UsageError, StorageError."""
    source = StoredObject(uri)
    with reaching(uri, "read"):
        return read_judged(source, source.identity().size_bytes, limits)
