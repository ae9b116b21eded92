"""From the instances of a DICOM series to a stored volume: headers, frames, volumes; pixels when they are asked for.

docs/dicom.md says what is read, by which rules, and what is refused. Which frames belong together, in which order, and
where they lie:

1. Frames of one shape, orientation and spacing are a stack. That with the most positions is taken.
2. Its frames are ordered by their position along the normal, never by instance number.
3. If several frames share a position, there are several volumes: time points, echoes, b-values, magnitude and phase.
   Frames of equal content belong together. Magnitude comes before all others; then what covers the most positions;
   then the shortest echo, the least b-value, the earliest time, the lowest acquisition and instance number. At each
   position the frames are put in this order: the first ones are the first volume, the second ones the second.
4. The affine runs from the first slice to the last. Where slices are not evenly spaced along it, their true positions
   are kept beside it. A gantry tilt is a shear of the affine, as the scanner measured it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError, require
from medret.visible import visible
from medret.volume.content import Limits, Part, check_sides
from medret.volume.dicom.frames import Content, Frame, frames_of
from medret.volume.dicom.instances import Instance, images_of
from medret.volume.dicom.pixels import check_pixels, decoded
from medret.volume.dicom.tags import labels_of, numbers_of, text_of, unvalidated
from medret.volume.orientation import Placement, check_affine
from medret.volume.stored import Scaling, SeriesFacts, StoredVolume

_SAME_DIRECTION = 1e-2  # per component of a unit vector
_SAME_SPACING = 1e-2  # relative
_SAME_PLACE = 0.02  # of the spacing between pixels: frames that near share a position
_EVEN = 0.01  # of the step: slices that near to the affine lie on it
_WHOLE = 0.05  # of a gap: how near to a multiple of the usual gap one must be to hold missing slices
_LEAST_TILT = 0.1  # degrees
_MOST_FRAMES = 1 << 17  # each takes memory before its pixels are read
_MOST_STACKS = 64  # radial acquisitions have as many as slices
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AXIAL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


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
    if (count := sum(instance.frames for instance in grey)) > _MOST_FRAMES:
        raise VolumeError(QuarantineCode.TOO_LARGE, f"the headers declare {count} frames; the limit is {_MOST_FRAMES}")
    stack = _stack_of([frame for instance in grey for frame in frames_of(instance)])
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


def _facts(stack: _Stack, instances: Sequence[Instance], duplicates: int, left_out: Counter[str]) -> SeriesFacts:
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


@dataclass(frozen=True)
class _Stack:
    """The volumes of a series, which lie at the same place.

    volumes: the first one and its later time points, each with its frames in order of position.
    repeated: frames beyond the volumes: at some positions of a stack there are more frames than at others.
    others: frames of other stacks. taken: what the first of several volumes shows, in words; None if there is one.
    tilt_degrees: between the line through the slices and their normal.
    gaps_mm: least and greatest distance along the normal, where slices are not evenly spaced; None where they are.
    missing: slices that gaps of twice, thrice ... the usual distance have room for.
    """

    volumes: tuple[tuple[Frame, ...], ...]
    placement: Placement
    repeated: int
    others: int
    taken: str | None
    tilt_degrees: float
    gaps_mm: tuple[float, float] | None
    missing: int


def _stack_of(frames: Sequence[Frame]) -> _Stack:
    """The volumes that a series holds; raises VolumeError INSTANCE_MISSING, AFFINE_INVALID. frames: at least one."""
    stacks = _stacks(frames)
    placed = [_by_position(stack) for stack in stacks]
    number = max(range(len(stacks)), key=lambda number: len(placed[number]))  # the first of the longest
    places = placed[number]
    depths = [depth for depth, _ in places]
    covered = Counter(content for _, frames in places for content in {frame.content for frame in frames})
    columns = [sorted(column, key=lambda frame: _rank(frame, covered[frame.content])) for _, column in places]
    count = min(map(len, columns))
    every = [tuple(column[volume] for column in columns) for volume in range(count)]
    first = every[0]
    volumes = tuple(volume for volume in every if _is_later(volume[0].content, first[0].content))
    gaps = [after - before for before, after in pairwise(depths)]
    placement = _placement(first, depths)
    usual = float(np.median(gaps)) if gaps else 0.0
    holes = [round(gap / usual) - 1 if abs(gap / usual - round(gap / usual)) < _WHOLE else -1 for gap in gaps]
    missing = sum(holes) if holes and min(holes) >= 0 else 0
    if missing:
        _check_none_missing(first, holes, {int(frame.order[1]) for frame in frames})
    return _Stack(
        volumes=volumes,
        placement=placement,
        repeated=len(stacks[number]) - count * len(columns),
        others=len(frames) - len(stacks[number]),
        taken=_in_words(first[0].content, count) if count > 1 else None,
        tilt_degrees=_tilt(placement),
        gaps_mm=(round(min(gaps), 4), round(max(gaps), 4)) if placement.deviations_mm is not None else None,
        missing=missing,
    )


def _stacks(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames by shape, orientation and spacing; the stacks in the order of their first frames, up to a number."""
    stacks: list[list[Frame]] = []
    for frame in sorted(frames, key=lambda frame: frame.order):
        for stack in stacks:
            if _fits(frame, stack[0]):
                stack.append(frame)
                break
        else:
            stacks += [[frame]] if len(stacks) < _MOST_STACKS else []
    return stacks


def _fits(frame: Frame, other: Frame) -> bool:
    if frame.shape != other.shape or frame.is_placed != other.is_placed:
        return False
    if (frame.axes is None) != (other.axes is None) or (frame.spacing is None) != (other.spacing is None):
        return False
    if frame.axes is not None and other.axes is not None and np.abs(frame.axes - other.axes).max() > _SAME_DIRECTION:
        return False
    pairs = zip(frame.spacing or (), other.spacing or (), strict=True)
    return all(abs(one - two) <= _SAME_SPACING * two for one, two in pairs)


def _by_position(stack: Sequence[Frame]) -> list[tuple[float, list[Frame]]]:
    """(mm along the normal, the frames there), ascending. Without positions, by SliceLocation or by order."""
    first = stack[0]
    nearest = _SAME_PLACE * min(first.spacing or (1.0, 1.0))
    depths = [0.0] * len(stack)
    if first.is_placed and first.axes is not None:
        normal = np.cross(*first.axes)
        depths = [float(frame.position @ normal) for frame in stack if frame.position is not None]
    if max(depths) - min(depths) <= nearest:
        located = [frame.location for frame in stack if frame.location is not None]
        if len(located) == len(stack) and max(located) - min(located) > nearest:
            depths = located
        elif not first.is_placed:
            depths = [number * abs(first.step or 1.0) for number in range(len(stack))]
    places: list[tuple[float, list[Frame]]] = []
    for depth, frame in sorted(zip(depths, stack, strict=True), key=lambda pair: (pair[0], pair[1].order)):
        if places and depth - places[-1][0] <= nearest:
            places[-1][1].append(frame)
        else:
            places.append((depth, [frame]))
    return places


def _rank(frame: Frame, covered: int) -> tuple[Any, ...]:
    """The place of a frame among those at its position (rule 3). covered: positions that have its content."""
    content = frame.content
    return (not content.is_magnitude, -covered, content.echo_ms, content.b_value, content.temporal, frame.order)


def _placement(frames: Sequence[Frame], depths: Sequence[float]) -> Placement:
    """The affine through the slices of a volume, and how far their true positions lie from it."""
    first = frames[0]
    spacing = first.spacing or (1.0, 1.0)
    axes = _AXIAL if first.axes is None else first.axes
    normal = np.cross(*axes)
    stated = abs(first.step or 1.0)
    if first.is_placed:
        positions = np.array([frame.position for frame in frames])
        if float(np.ptp(positions @ normal)) < (depths[-1] - depths[0]) / 2:  # one position for all: by SliceLocation
            positions = positions[0] + np.outer(np.array(depths) - depths[0], normal)
    else:  # centred, as a NIfTI file without a form
        positions = np.outer(np.array(depths) - (depths[0] + depths[-1]) / 2, normal)
        positions -= sum(
            direction * length * (side - 1) / 2
            for direction, length, side in zip(axes, spacing, first.shape[::-1], strict=True)
        )
    last = len(frames) - 1
    step = (positions[-1] - positions[0]) / last if last else normal * stated
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes[0] * spacing[0], axes[1] * spacing[1], step, positions[0]])
    deviations = positions - (positions[0] + np.outer(np.arange(len(frames)), step))
    is_even = float(np.linalg.norm(deviations, axis=1).max()) <= _EVEN * float(np.linalg.norm(step))
    source: Literal["dicom", "assumed"] = "dicom" if first.is_placed else "assumed"
    affine = _LPS_TO_RAS @ affine
    check_affine(affine, source)
    return Placement(
        affine,
        source,
        spacing_assumed=first.spacing is None or (not last and first.step is None),
        passed_over=None if first.is_placed else _unplaced(first),
        deviations_mm=None if is_even else deviations @ _LPS_TO_RAS[:3, :3],
    )


def _unplaced(frame: Frame) -> str:
    lacks = [
        name
        for name, found in (
            ("ImagePositionPatient", frame.position is not None),
            ("ImageOrientationPatient", frame.is_oriented),
        )
        if not found
    ]
    return f"its frames have no usable {' and '.join(lacks)}"


def _tilt(placement: Placement) -> float:
    step = placement.affine[:3, 2]
    normal = np.cross(placement.affine[:3, 0], placement.affine[:3, 1])
    cosine = abs(float(step @ normal)) / float(np.linalg.norm(step) * np.linalg.norm(normal))
    degrees = float(np.degrees(np.arccos(min(1.0, cosine))))
    return round(degrees, 2) if degrees >= _LEAST_TILT else 0.0


def _check_none_missing(frames: Sequence[Frame], holes: Sequence[int], present: set[int]) -> None:
    """Raise INSTANCE_MISSING if as many instance numbers are left out as there are holes: they name what is missing.

    holes: room for missing slices between each slice and the next. present: all instance numbers of the series. Numbers
    need not follow the positions. Without such evidence, the scanner may have left the slices out.
    """
    numbers = sorted({int(frame.order[1]) for frame in frames})
    if len(numbers) < len(frames) or len({frame.instance.uid for frame in frames}) < len(frames):
        return
    if sum(holes) > len(frames):  # thinned out on purpose
        return
    stride = min(after - before for before, after in pairwise(numbers))
    places, rest = divmod(numbers[-1] - numbers[0], stride)
    if rest or places + 1 - len(numbers) != sum(holes):
        return
    skipped = sorted(set(range(numbers[0], numbers[-1], stride)).difference(numbers))
    missing = [number for number in skipped if number not in present]
    if not missing:
        return
    named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    raise VolumeError(
        QuarantineCode.INSTANCE_MISSING,
        f"instances are missing between its {len(frames)} slices, by position and by instance number: {named}",
    )


def _is_later(content: Content, first: Content) -> bool:
    """Whether a volume shows what the first one does, at another time or b-value."""
    return replace(content, temporal=0, b_value=0.0) == replace(first, temporal=0, b_value=0.0)


def _in_words(content: Content, volumes: int) -> str:
    words = ["magnitude" if content.is_magnitude else "not a magnitude"]
    words += [f"echo time {content.echo_ms:g} ms"] if content.echo_ms else []
    words += [f"b-value {content.b_value:g}"] if content.b_value else []
    return f"{', '.join(words)}: the first of {volumes} volumes"
