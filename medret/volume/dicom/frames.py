"""The frames of a DICOM instance: where each lies, how its values are scaled, and what kind of image it is.

A frame's properties stand in its own functional groups, in those that all frames share, or in the header, and are
looked for in this order, so that single frames, enhanced multi-frame images and nuclear medicine are read alike.
Positions and directions are DICOM's: mm, x to the patient's Left, y to Posterior, z to Superior.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medret.volume.dicom.instances import Instance, mosaic_of
from medret.volume.dicom.tags import GE_COMPONENT, GE_CREATOR, items_of, numbers_of, texts_of, values_of
from medret.volume.stored import Scaling

# What an image type says of phase, of the parts of complex numbers, and of maps computed from them.
_NOT_MAGNITUDE = re.compile(r"(P|PH|R|REAL|I|IMAGINARY|PHASE|VELOCITY|FIELD|B0)([ _](FFE|SE|IR|TFE|TSE|PCA|MAP))?")
_DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
_LEAST_SINE = 0.9  # between a row and a column

Reader = Callable[[Any, str], list[Any]]  # of an element's values: numbers_of or texts_of


@dataclass(frozen=True)
class Content:
    """What a frame shows. Frames of one volume have equal contents.

    is_magnitude: False for phase, real and imaginary parts, and maps of them. echo_ms, b_value: 0 if there is none.
    temporal: position in time, from 1; 0 if there is none. types: the image type beyond its first two values.
    """

    is_magnitude: bool = True
    echo_ms: float = 0.0
    b_value: float = 0.0
    temporal: int = 0
    types: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a volume.

    number: of the frame within its instance, from 0. tile: first row and column in a mosaic; (0, 0) otherwise.
    shape: rows and columns. source: as SliceRef.source.
    position: (3,) of the first pixel's centre; None if unknown. location: SliceLocation, in mm.
    axes: (2, 3) unit vectors along a row and along a column; None if unknown. is_oriented: whether the scanner said so.
    spacing: mm between columns and between rows. step: mm between slices as stated; None if unknown.
    order: frames of equal content at one position follow one another in this order.
    """

    instance: Instance
    number: int
    tile: tuple[int, int]
    shape: tuple[int, int]
    source: str
    position: NDArray[np.float64] | None
    location: float | None
    axes: NDArray[np.float64] | None
    is_oriented: bool
    spacing: tuple[float, float] | None
    step: float | None
    scaling: Scaling
    content: Content
    order: tuple[Any, ...]

    @property
    def is_placed(self) -> bool:
        """Whether the scanner said where it lies."""
        return self.position is not None and self.is_oriented


@dataclass(frozen=True)
class _Properties:
    """Where the properties of a frame stand.

    own: its functional groups, shared: those of all frames, header: of the instance; the first that has a property
    counts. common: what the last two say, found once for all frames.
    """

    own: Any
    shared: Any
    header: Any
    common: dict[tuple[Reader, str], list[Any]]

    def find(self, read: Reader, keyword: str, *sequences: str) -> list[Any]:
        """The values of an element, in one of these functional groups or in the header."""
        if found := _in_groups(self.own, read, keyword, sequences):
            return found
        key = (read, keyword)
        if key not in self.common:
            self.common[key] = _in_groups(self.shared, read, keyword, sequences) or read(self.header, keyword)
        return self.common[key]

    def number(self, keyword: str, *sequences: str) -> float:
        """The first value of an element; 0 without one."""
        found: float = next(iter(self.find(numbers_of, keyword, *sequences)), 0.0)
        return found

    def text(self, keyword: str) -> str:
        """The first value of an element in the header; empty without one."""
        return next(iter(self.find(texts_of, keyword)), "")


def frames_of(instance: Instance) -> list[Frame]:
    """All frames of an instance, those of a mosaic cut out; raises VolumeError INSTANCE_DAMAGED."""
    header, count = instance.header, instance.frames
    own = items_of(header, "PerFrameFunctionalGroupsSequence")
    shared = next(iter(items_of(header, "SharedFunctionalGroupsSequence")), None)
    if count > 1 and 0 < len(own) < count:
        raise instance.damaged(f"it describes {len(own)} of its {count} frames")
    common: dict[tuple[Reader, str], list[Any]] = {}
    frames = [
        _frame(instance, number, _Properties(own[number] if own else None, shared, header, common))
        for number in range(count)
    ]
    if count > 1 and not own:
        return _stacked(frames)
    if count == 1 and not own and (mosaic := mosaic_of(instance)):
        return _tiles(frames[0], mosaic.tiles(), (mosaic.rows, mosaic.columns), mosaic.normal)
    return frames


def _frame(instance: Instance, number: int, of: _Properties) -> Frame:
    detector = None if of.own else next(iter(items_of(instance.header, "DetectorInformationSequence")), None)
    position = (
        of.find(numbers_of, "ImagePositionPatient", "PlanePositionSequence")
        or of.find(numbers_of, "ImagePositionVolume", "PlanePositionVolumeSequence")
        or numbers_of(detector, "ImagePositionPatient")
    )
    directions = (
        of.find(numbers_of, "ImageOrientationPatient", "PlaneOrientationSequence")
        or of.find(numbers_of, "ImageOrientationVolume", "PlaneOrientationVolumeSequence")
        or numbers_of(detector, "ImageOrientationPatient")
    )
    axes = _axes(directions)
    spacing = (
        of.find(numbers_of, "PixelSpacing", "PixelMeasuresSequence")
        or of.find(numbers_of, "ImagerPixelSpacing")
        or of.find(numbers_of, "NominalScannedPixelSpacing")
    )
    measures = "PixelMeasuresSequence"
    slope = of.number("RescaleSlope", "PixelValueTransformationSequence") or 1.0
    inter = of.number("RescaleIntercept", "PixelValueTransformationSequence")
    return Frame(
        instance=instance,
        number=number,
        tile=(0, 0),
        shape=(instance.rows, instance.columns),
        source=f"{instance.uid}#{number + 1}" if instance.frames > 1 else instance.uid,
        position=np.array(position) if len(position) == 3 else None,
        location=next(iter(of.find(numbers_of, "SliceLocation")), None),
        axes=_patient_axes(instance.header) if axes is None else axes,
        is_oriented=axes is not None,
        spacing=(abs(spacing[1]), abs(spacing[0])) if len(spacing) == 2 and all(spacing) else None,
        step=of.number("SpacingBetweenSlices", measures) or of.number("SliceThickness", measures) or None,
        scaling=Scaling(slope, inter),
        content=Content(
            is_magnitude=_is_magnitude(of),
            echo_ms=of.number("EffectiveEchoTime", "MREchoSequence") or of.number("EchoTime"),
            b_value=of.number("DiffusionBValue", "MRDiffusionSequence"),
            temporal=int(
                of.number("TemporalPositionIndex", "FrameContentSequence")
                or of.number("TemporalPositionIdentifier")
                or _from_vector(of, number)
            ),
            types=tuple(_types(of)),
        ),
        order=(
            of.number("FrameAcquisitionNumber", "FrameContentSequence") or of.number("AcquisitionNumber"),
            of.number("InstanceNumber"),
            of.number("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence") or of.number("TriggerTime"),
            of.text("AcquisitionDate") + of.text("AcquisitionTime"),
            number,
            instance.uid,
        ),
    )


def _in_groups(groups: Any, read: Reader, keyword: str, sequences: Sequence[str]) -> list[Any]:
    for sequence in sequences:
        for item in items_of(groups, sequence)[:1]:
            if found := read(item, keyword):
                return found
    return []


def _axes(directions: Sequence[float]) -> NDArray[np.float64] | None:
    """(2, 3) unit vectors; None if they do not span a plane."""
    if len(directions) != 6:
        return None
    axes = np.reshape(np.array(directions, dtype=np.float64), (2, 3))
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) < 0.1).all():
        return None
    axes = axes / lengths
    return axes if float(np.linalg.norm(np.cross(axes[0], axes[1]))) > _LEAST_SINE else None


def _patient_axes(header: Any) -> NDArray[np.float64] | None:
    """Directions in words, as projections and old images have them; None without them."""
    words = [text[:1].upper() for text in texts_of(header, "PatientOrientation")]
    found = [_DIRECTIONS[word] for word in words if word in _DIRECTIONS]
    return _axes([float(part) for direction in found for part in direction]) if len(found) == 2 else None


def _types(of: _Properties) -> list[str]:
    sequences = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
    found = of.find(texts_of, "FrameType", *sequences) or of.find(texts_of, "ImageType")
    return [text.upper() for text in found[2:]]


def _is_magnitude(of: _Properties) -> bool:
    if of.text("Modality") != "MR":
        return True
    component = of.find(texts_of, "ComplexImageComponent", "MRImageFrameTypeSequence")
    if component and component[0].upper() in ("PHASE", "REAL", "IMAGINARY"):
        return False
    makers = [str(value).strip() for value in values_of(of.header, GE_CREATOR)]
    if makers == ["GEMS_PARM_01"] and next(iter(numbers_of(of.header, GE_COMPONENT)), 0) in (1, 2, 3):
        return False
    return not any(_NOT_MAGNITUDE.fullmatch(text) for text in _types(of))


def _from_vector(of: _Properties, number: int) -> float:
    """The time slot or phase of a frame of nuclear medicine."""
    for keyword in ("TimeSlotVector", "PhaseVector"):
        vector = of.find(numbers_of, keyword)
        if number < len(vector):
            slot: float = vector[number]
            return slot
    return 0.0


def _stacked(frames: list[Frame]) -> list[Frame]:
    """Frames of which only the first one's position is stated: they follow along the normal (PS3.3, C.8.4.15)."""
    first = frames[0]
    if first.position is None or first.axes is None or first.step is None:
        return [replace(frame, position=None) for frame in frames]
    normal = np.cross(first.axes[0], first.axes[1])
    vector = numbers_of(first.instance.header, "SliceVector")
    places = [vector[frame.number] - 1 if frame.number < len(vector) else frame.number for frame in frames]
    return [
        replace(frame, position=first.position + normal * first.step * place)
        for frame, place in zip(frames, places, strict=True)
    ]


def _tiles(
    frame: Frame, tiles: Sequence[tuple[int, int]], shape: tuple[int, int], normal: NDArray[np.float64] | None
) -> list[Frame]:
    """The slices of a mosaic. Its position is that of an image of its whole size around the same centre."""
    if frame.position is None or frame.axes is None or frame.spacing is None or frame.step is None:
        return [replace(frame, tile=tile, shape=shape, position=None) for tile in tiles]
    across, down = frame.axes
    width, height = frame.spacing
    position = (
        frame.position
        + across * width * (frame.shape[1] - shape[1]) / 2
        + down * height * (frame.shape[0] - shape[0]) / 2
    )
    along = np.cross(across, down)
    if normal is not None and float(along @ normal) < 0:
        along = -along
    return [
        replace(frame, tile=tile, shape=shape, position=position + along * frame.step * number)
        for number, tile in enumerate(tiles)
    ]
