"""Read the bytes of a volume, without reading all of a large object that is not one."""

from __future__ import annotations

from medret.storage import StoredObject, reaching
from medret.volume.limits import MIB, Limits
from medret.volume.nifti import START_BYTES, judge_start

JUDGED_FIRST_BYTES = 64 * MIB  # for larger objects a second request costs little beside the first


def read_judged(source: StoredObject, size_bytes: int, limits: Limits) -> bytes:
    """Read an object; a large one only after its first bytes proved to be those of a volume.

    Raises VolumeError, or whatever the object's filesystem raises.
    """
    if size_bytes > JUDGED_FIRST_BYTES:
        judge_start(source.read(0, START_BYTES), size_bytes, limits)
    return source.read()


def fetch_volume(uri: str, limits: Limits) -> bytes:
    """Read the object behind a URI; raises VolumeError, FileNotFoundError, UsageError, StorageError."""
    source = StoredObject(uri)
    with reaching(uri, "read"):
        return read_judged(source, source.identity().size_bytes, limits)
