"""From the instances of a DICOM series to a stored volume: headers, frames, volumes; pixels when they are asked for.

docs/dicom.md says what is read, by which rules, and what is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.extras import require
from medret.visible import visible
from medret.volume.content import Limits, Part, check_sides
from medret.volume.dicom.frames import frames_of
from medret.volume.dicom.instances import Instance, images_of, numbers_of, text_of, unvalidated
from medret.volume.dicom.pixels import check_pixels, decoded
from medret.volume.dicom.stacks import Stack, stack_of
from medret.volume.dicom.tags import labels_of
from medret.volume.stored import Scaling, SeriesFacts, StoredVolume


def open_series(parts: Sequence[Part], limits: Limits) -> StoredVolume:
    """Read the headers of a series and find its volumes; raises only VolumeError, whatever the bytes.

    Voxels are decoded when they are asked for, which may raise VolumeError INSTANCE_DAMAGED.
    """
    require("pydicom")
    with unvalidated():
        return _opened(parts, limits)


def _opened(parts: Sequence[Part], limits: Limits) -> StoredVolume:
    images, left_out = images_of(parts, limits)
    instances = _distinct(images)
    grey = [instance for instance in instances if instance.is_grey]
    if not grey:
        seen = visible(text_of(instances[0].header, "PhotometricInterpretation"))
        raise VolumeError(QuarantineCode.DATATYPE_UNSUPPORTED, f"its pixels are colours ({seen}), expected grey values")
    _check_size(sum(instance.voxels_bytes for instance in grey), limits)
    for instance in grey:
        check_pixels(instance)
    stack = stack_of([frame for instance in grey for frame in frames_of(instance)])
    frames = [frame for volume in stack.volumes for frame in volume]
    scaling, dtype = _scaling({frame.scaling for frame in frames}, {frame.instance.dtype for frame in frames})
    rows, columns = stack.volumes[0][0].shape
    sides = (columns, rows, len(stack.volumes[0]))
    check_sides(sides, limits)
    _check_size(math.prod(sides) * dtype.itemsize, limits)

    def voxels(time_point: int) -> NDArray[np.generic]:
        return decoded(stack.volumes[time_point], dtype, scaling)

    left_out["colour"] += len(instances) - len(grey)
    return StoredVolume(
        format="DICOM",
        shape=sides if len(stack.volumes) == 1 else (*sides, len(stack.volumes)),
        dtype=dtype,
        scaling=scaling,
        placement=stack.placement,
        voxels=voxels,
        sources=tuple(tuple(frame.source for frame in volume) for volume in stack.volumes),
        labels=labels_of(grey[0].header),
        series=_facts(stack, grey, len(images) - len(instances), left_out),
    )


def _distinct(images: Sequence[Instance]) -> list[Instance]:
    """Each SOP instance once, in an order that does not depend on the names of objects.

    Equal UIDs are not enough: some anonymisers give all instances the same.
    """
    known: dict[Any, Instance] = {}
    for instance in sorted(images, key=lambda instance: (instance.uid, bytes(instance.data[:64]), len(instance.data))):
        place = (tuple(numbers_of(instance.header, name)) for name in ("InstanceNumber", "ImagePositionPatient"))
        known.setdefault((instance.uid, *place) if instance.uid else id(instance), instance)
    return list(known.values())


def _check_size(voxels_bytes: int, limits: Limits) -> None:
    if voxels_bytes > limits.max_voxels_bytes:
        raise VolumeError(
            QuarantineCode.TOO_LARGE,
            f"the headers declare {voxels_bytes} bytes of voxels; the limit is {limits.max_voxels_bytes}",
        )


def _scaling(scalings: set[Scaling], dtypes: set[np.dtype[np.generic]]) -> tuple[Scaling, np.dtype[np.generic]]:
    """One scaling for stored values; real ones in float32 if it differs between frames, as in PET."""
    if len(scalings) > 1:
        return Scaling(), np.dtype(np.float32)
    return scalings.pop(), np.result_type(*dtypes)


def _facts(stack: Stack, instances: Sequence[Instance], duplicates: int, left_out: Counter[str]) -> SeriesFacts:
    return SeriesFacts(
        instances=len(instances),
        syntaxes=tuple(sorted({instance.syntax for instance in instances})),
        left_out={kind: count for kind, count in sorted(left_out.items()) if count},
        duplicates=duplicates,
        repeated_frames=stack.repeated,
        frames_of_other_stacks=stack.others,
        taken=stack.taken,
        tilt_degrees=stack.tilt_degrees,
        gaps_mm=stack.gaps_mm,
        missing_slices=stack.missing,
    )
