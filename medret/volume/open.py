"""From the content of a volume to the stored volume: the first bytes decide what it is, never a name."""

from __future__ import annotations

from medret.archive.dicom_head import read_head
from medret.errors import QuarantineCode, VolumeError
from medret.storage import StoredObject
from medret.volume.bundles import is_tar, is_zip, untarred, unzipped
from medret.volume.content import Bytes, Content, Part
from medret.volume.dicom import open_series
from medret.volume.inflate import MIB
from medret.volume.limits import Limits
from medret.volume.nifti import START_BYTES, judge_nifti, open_nifti
from medret.volume.stored import StoredVolume

_JUDGED_FIRST_BYTES = 64 * MIB  # for larger objects a second request costs little beside the first
_DICOM_START_BYTES = 4096


def open_volume(content: Content, limits: Limits) -> StoredVolume:
    """Decode and check a volume as far as its voxels; raises only VolumeError, whatever the bytes."""
    if isinstance(content, tuple):
        return open_series(content, limits)
    if _is_dicom(content):
        return open_series((Part("", bytes(content)),), limits)
    unpack = unzipped if is_zip(content) else untarred if is_tar(content) else None
    if unpack is None:
        return open_nifti(content, limits)
    parts = unpack(content, limits)
    if not parts:
        raise VolumeError(
            QuarantineCode.NOT_NIFTI,
            "it is a zip or tar archive without a DICOM series: unpack it, and store each volume as .nii or .nii.gz",
        )
    return open_series(parts, limits)


def read_judged(source: StoredObject, size_bytes: int, limits: Limits) -> bytes:
    """Read an object; a large one only after its first bytes proved to be those of a volume.

    Raises VolumeError, or whatever the object's filesystem raises.
    """
    if size_bytes > _JUDGED_FIRST_BYTES:
        judge_start(source.read(0, START_BYTES), size_bytes, limits)
    return source.read()


def judge_start(start: bytes, size_bytes: int, limits: Limits) -> None:
    """Refuse an object by its first bytes and its size, before the rest is read; raises VolumeError.

    start: its first `START_BYTES`. An object that passes is checked again after reading. DICOM objects, zips and
    tars pass: they are not much larger than their voxels.
    """
    if not (_is_dicom(start) or is_zip(start) or is_tar(start)):
        judge_nifti(start, size_bytes, limits)


def _is_dicom(data: Bytes) -> bool:
    return read_head(data[:_DICOM_START_BYTES]) is not None
