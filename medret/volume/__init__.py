"""NIfTI bytes to uint8 slices: checks, RAS+ orientation, intensity window, slice plan, square images."""

from medret.volume.facts import SlicedVolume, SliceRef, VolumeFacts
from medret.volume.fetch import fetch_volume, read_judged
from medret.volume.intensity import CT_WINDOWS
from medret.volume.limits import Limits
from medret.volume.read import read_volume
from medret.volume.slice_plan import SlicePlan, parse_slice_plan

__all__ = [
    "CT_WINDOWS",
    "Limits",
    "SlicePlan",
    "SliceRef",
    "SlicedVolume",
    "VolumeFacts",
    "fetch_volume",
    "parse_slice_plan",
    "read_judged",
    "read_volume",
]
