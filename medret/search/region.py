"""The part of a query that is asked for: `--slices`, `--box`, `--mask`, as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medret.errors import UsageError
from medret.recipe import PLANES

if TYPE_CHECKING:
    from medret.volume.region import Region

PARTS = ("slices", "box", "mask")  # the options that name a part of a query
AXES = ("sagittal", "coronal", "axial")  # the plane whose slices follow one another along x, y, z
_NUMBER = r"([+-]?\d+(?:\.\d+)?)"
_VOXELS = re.compile(r"(\d+):(\d+)")
_MM = re.compile(rf"{_NUMBER}\s*mm:{_NUMBER}\s*mm")


@dataclass(frozen=True)
class SliceRange:
    """First and last slice along a plane's axis, inclusive: voxel positions, or scanner coordinates with `mm`."""

    plane: str
    first: float
    last: float
    mm: bool

    def region(self) -> Region:
        """The same as bounds of a volume."""
        from medret.volume.region import Region

        x, y, z = ((self.first, self.last) if plane == self.plane else None for plane in AXES)
        return Region((x, y, z), self.mm)

    def __str__(self) -> str:
        unit = "mm" if self.mm else ""
        return f"{self.plane} {self.first:g}{unit}:{self.last:g}{unit}"


def parse_range(text: str, plane: str) -> SliceRange:
    """`40:58` or `-12.5mm:30mm`; raises UsageError."""
    if plane not in PLANES:
        raise UsageError(f"plane '{plane}' is not available; there are {', '.join(PLANES)}")
    match = _VOXELS.fullmatch(text.strip()) or _MM.fullmatch(text.strip())
    if match is None or float(match[1]) > float(match[2]):
        problem = "ends before it begins" if match else "is not understood"
        raise UsageError(f"slices '{text}' {problem}; expected FIRST:LAST such as 40:58, or 40mm:58.5mm")
    return SliceRange(plane, float(match[1]), float(match[2]), match.re is _MM)


def parse_box(text: str) -> Region:
    """`x0:x1,y0:y1,z0:z1`; raises UsageError."""
    from medret.volume.region import Region

    matches = [_VOXELS.fullmatch(part.strip()) for part in text.split(",")]
    bounds = [(float(match[1]), float(match[2])) for match in matches if match]
    if len(matches) != 3 or len(bounds) != 3 or any(first > last for first, last in bounds):
        raise UsageError(
            f"box '{text}' is not understood; expected X0:X1,Y0:Y1,Z0:Z1, first and last voxel in RAS+ order, such as "
            "40:120,30:90,10:25"
        )
    return Region((bounds[0], bounds[1], bounds[2]))
