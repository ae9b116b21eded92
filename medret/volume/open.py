"""From the content of a volume to the stored volume: the first bytes decide what it is, never a name."""

from __future__ import annotations

from medret.errors import QuarantineCode, VolumeError
from medret.volume.content import Content
from medret.volume.header import Limits
from medret.volume.nifti import open_nifti
from medret.volume.stored import StoredVolume


def open_volume(content: Content, limits: Limits) -> StoredVolume:
    """Decode and check a volume as far as its voxels; raises only VolumeError, whatever the bytes."""
    if isinstance(content, tuple):
        raise VolumeError(QuarantineCode.NOT_NIFTI, f"the {len(content)} instances of a series cannot be read yet")
    return open_nifti(content, limits)
