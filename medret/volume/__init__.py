"""Bytes of a NIfTI object to uint8 slices: checks, RAS+ orientation, intensity window, slice plan, square images."""

from medret.volume.facts import SlicedVolume, SliceRef, VolumeFacts
from medret.volume.intensity import CT_WINDOWS
from medret.volume.limits import Limits
from medret.volume.nifti import START_BYTES, judge_start
from medret.volume.plan import SlicePlan, parse_slice_plan
from medret.volume.read import read_volume

__all__ = [
    "CT_WINDOWS",
    "START_BYTES",
    "Limits",
    "SlicePlan",
    "SliceRef",
    "SlicedVolume",
    "VolumeFacts",
    "judge_start",
    "parse_slice_plan",
    "read_volume",
]
