"""Siemens mosaics: one image that holds all slices of a volume, side by side.

What lies where stands in the private CSA header (https://nipy.org/nibabel/dicom/siemens_csa.html), which may be damaged
like any other part of a file: it is read within its bounds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medret.volume.dicom.instances import (
    CSA_CREATOR,
    CSA_HEADER,
    MOSAIC_CREATOR,
    MOSAIC_IMAGES,
    Instance,
    numbers_of,
    texts_of,
    values_of,
)

_MOST_TAGS, _MOST_ITEMS = 128, 4096
_MOST_IMAGES = 4096


@dataclass(frozen=True)
class Mosaic:
    """images: slices in the mosaic. rows, columns: of each. normal: (3,) direction in which they follow, or None."""

    images: int
    rows: int
    columns: int
    normal: NDArray[np.float64] | None

    def tiles(self) -> list[tuple[int, int]]:
        """The first row and column of each slice in the mosaic: line by line, in a square."""
        across = math.ceil(math.sqrt(self.images))
        return [(self.rows * (image // across), self.columns * (image % across)) for image in range(self.images)]


def mosaic_of(instance: Instance) -> Mosaic | None:
    """How an instance is divided; None if it is no mosaic. Raises VolumeError INSTANCE_DAMAGED."""
    if "MOSAIC" not in (text.upper() for text in texts_of(instance.header, "ImageType")):
        return None
    csa = {}
    if _creator(instance, CSA_CREATOR) == "SIEMENS CSA HEADER":
        data = next(iter(values_of(instance.header, CSA_HEADER)), b"")
        csa = dict(csa_elements(data)) if isinstance(data, bytes) else {}
    stated = _numbers(csa.get("NumberOfImagesInMosaic", []))
    if not stated and _creator(instance, MOSAIC_CREATOR) == "SIEMENS MR HEADER":
        stated = numbers_of(instance.header, MOSAIC_IMAGES)
    if not stated:
        raise instance.damaged("it is a Siemens mosaic, and does not say of how many slices")
    images = int(stated[0])
    across = math.ceil(math.sqrt(images)) if 0 < images <= _MOST_IMAGES else 0
    if not across or instance.rows % across or instance.columns % across:
        raise instance.damaged(f"{instance.rows} x {instance.columns} pixels are no mosaic of {stated[0]:g} slices")
    normal = np.array(_numbers(csa.get("SliceNormalVector", [])))
    is_direction = normal.shape == (3,) and abs(float(np.linalg.norm(normal)) - 1) < 0.1
    return Mosaic(images, instance.rows // across, instance.columns // across, normal if is_direction else None)


def csa_elements(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """The name and values of each element of a CSA header, as far as it is intact."""
    at = 8 if data[:4] == b"SV10" else 0
    if len(data) < at + 8:
        return
    (count,) = struct.unpack_from("<I", data, at)
    at += 8
    for _ in range(min(count, _MOST_TAGS)):
        if at + 84 > len(data):
            return
        name = data[at : at + 64].split(b"\0")[0].decode("latin-1")
        (items,) = struct.unpack_from("<i", data, at + 76)
        at += 84
        values = []
        for _ in range(max(0, min(items, _MOST_ITEMS))):
            if at + 16 > len(data):
                return
            first, length = struct.unpack_from("<2i", data, at)
            length = length if data[:4] == b"SV10" else first
            if not 0 <= length <= len(data) - at - 16:
                return
            values.append(data[at + 16 : at + 16 + length].split(b"\0")[0].decode("latin-1").strip())
            at += 16 + (length + 3) // 4 * 4
        yield name, [value for value in values if value]


def _creator(instance: Instance, tag: int) -> str:
    return str(next(iter(values_of(instance.header, tag)), "")).strip()


def _numbers(values: list[str]) -> list[float]:
    try:
        found = [float(value) for value in values]
    except ValueError:
        return []
    return found if all(map(math.isfinite, found)) else []
