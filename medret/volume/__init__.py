"""NIfTI and DICOM to uint8 slices: checks, RAS+ orientation, intensity window, slice plan, square images."""

from medret.volume.content import Content, Limits, Part, content_sha256
from medret.volume.intensity import CT_WINDOWS
from medret.volume.open import VolumeSource, fetch_volume, size_of
from medret.volume.previews import VolumeView, view_volume
from medret.volume.read import SlicedVolume, VolumeFacts, read_volume
from medret.volume.slicing import SlicePlan, SliceRef, parse_slice_plan
