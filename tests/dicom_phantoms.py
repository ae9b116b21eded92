"""DICOM series written with pydicom from voxels and an affine, in every transfer syntax that pydicom can write."""

from __future__ import annotations

import base64
import io
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from medret.volume import Part

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}
_NATIVE = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
# 16 x 18 pixels, (column * 37 + row * row * 11) % 3000 - 1000, as JPEG Lossless SV1. pydicom does not write it.
JPEG_LOSSLESS = base64.b85decode(
    "|JeV-01FTR5C9SZ0TBTI!~hxq0RaF40{{R300000000001_%cU1Pl-V+5iXv0RRC20QbR!sZym%l`2%JQl(0jDpb6*sZym%l`2%JQl(0jDpaUarAn15"
    "RH;&>N|h>9sZzH}l`2%JQl(0jDpaXbrAw1irAn15RH;&>N|h>9sZ!=NsZym%l`2%JQl(0jDpa}UDpaXbrAn15RH;&>N|h}hl`2%JQl(0jDpaXbrAn5i"
    "N|h>9sZym%l`2%JQl(2>rAn15RH;&>N|h>9sZyo1Ql(0jDpaXbrAn15RH;(j=~AUil`2%JQl(0jDpaX&)TvUXN|h>9sZym%l`2%b6H1jTRH;&>N|h>9"
    "sZym&vXrS(rAn15RH;&>N|h>9yFW^mDpaXbrAn15RH=H6iBkUn|Je"
)
_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_CLASSES = {("CT", False): CTImageStorage, ("CT", True): EnhancedCTImageStorage, ("MR", False): MRImageStorage,
            ("MR", True): EnhancedMRImageStorage}  # fmt: skip


def affine_of(spacing: Sequence[float] = (0.8, 0.9, 2.5)) -> NDArray[np.float64]:
    """An axial affine in RAS+, with rows from right to left and columns from front to back, as scanners write."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (-20, -30, 40)
    return affine


def single_frames(
    voxels: NDArray[Any],
    affine: NDArray[np.float64] | None = None,
    *,
    modality: str = "CT",
    series: str = "1.2.826.0.7",
    **tags: Any,
) -> list[Dataset]:
    """One instance per slice. voxels: (x, y, z) stored values. tags: further elements by keyword."""
    affine = affine_of() if affine is None else affine
    data_sets = []
    for number in range(voxels.shape[2]):
        data = _image(voxels[:, :, number].T, modality, series, f"{series}.{number + 1}", is_enhanced=False)
        data.InstanceNumber = number + 1
        data.ImageOrientationPatient, data.PixelSpacing = _plane(affine)
        data.ImagePositionPatient = _position(affine, number)
        data.SliceThickness = float(np.linalg.norm(affine[:3, 2]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that scanners should not write
            for keyword, value in tags.items():
                setattr(data, keyword, value)
        data_sets.append(data)
    return data_sets


def enhanced(
    voxels: NDArray[Any],
    affine: NDArray[np.float64] | None = None,
    *,
    modality: str = "MR",
    series: str = "1.2.826.0.8",
    instance: int = 1,
    frame: Callable[[Dataset, int, int], None] | None = None,
) -> Dataset:
    """One multi-frame instance. voxels: (x, y, z, volume); frame(item, slice, volume) may change a frame's groups."""
    affine = affine_of() if affine is None else affine
    voxels = voxels if voxels.ndim == 4 else voxels[..., np.newaxis]
    slices, volumes = voxels.shape[2:]
    pixels = voxels.transpose(3, 2, 1, 0).reshape(-1, voxels.shape[1], voxels.shape[0])
    data = _image(pixels, modality, series, f"{series}.{instance}", is_enhanced=True)
    data.InstanceNumber = instance
    data.NumberOfFrames = len(pixels)
    orientation, spacing = _plane(affine)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = spacing, float(np.linalg.norm(affine[:3, 2]))
    plane.ImageOrientationPatient = orientation
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    data.SharedFunctionalGroupsSequence = Items([shared])
    items = []
    for volume in range(volumes):
        for number in range(slices):
            item, position, content = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = _position(affine, number)
            content.TemporalPositionIndex = volume + 1
            item.PlanePositionSequence, item.FrameContentSequence = Items([position]), Items([content])
            if frame:
                frame(item, number, volume)
            items.append(item)
    data.PerFrameFunctionalGroupsSequence = Items(items)
    return data


def mosaic(voxels: NDArray[Any], normal: tuple[float, float, float] | None) -> list[Dataset]:
    """A Siemens mosaic of 3 x 3 tiles with its CSA header. normal: the direction in which the slices follow."""
    width, height, count = voxels.shape
    image = np.zeros((3 * height, 3 * width), np.int16)
    for number in range(count):
        top, left = height * (number // 3), width * (number % 3)
        image[top : top + height, left : left + width] = voxels[:, :, number].T
    affine = affine_of()
    corner = affine.copy()
    corner[:3, 3] -= affine[:3, 0] * width + affine[:3, 1] * height  # of an image around the same centre
    data = single_frames(image.T[:, :, np.newaxis], corner, modality="MR")[0]
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    data.SpacingBetweenSlices = 2.5
    block = data.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    elements = {"NumberOfImagesInMosaic": [str(count)]}
    if normal:
        elements["SliceNormalVector"] = [f"{value:.8f}" for value in normal]
    block.add_new(0x10, "OB", _csa(elements))
    return [data]


def _csa(elements: dict[str, list[str]]) -> bytes:
    out = b"SV10\4\3\2\1" + struct.pack("<2I", len(elements), 77)
    for name, values in elements.items():
        out += name.encode().ljust(64, b"\0") + struct.pack("<i4s3i", len(values), b"US", 0, len(values) + 1, 77)
        for value in [*values, ""]:
            text = value.encode() + b"\0" * bool(value)
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return out


def with_item(data_set: Dataset, sequence: str, **tags: Any) -> None:
    """Give a data set a sequence of one item with these elements."""
    item = Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    setattr(data_set, sequence, Items([item]))


def encoded(data: Dataset, syntax: str = "explicit") -> bytes:
    """The bytes of a file. The data set is compressed in place."""
    uid = SYNTAXES[syntax]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if uid not in _NATIVE:
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.compress(uid, generate_instance_uid=False)
        elif uid == ExplicitVRBigEndian:
            wide = np.frombuffer(data.PixelData, f"<u{data.BitsAllocated // 8}")
            data.PixelData = wide.byteswap().tobytes()
        data.file_meta.TransferSyntaxUID = uid
        stream = io.BytesIO()
        data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def with_stream(data: Dataset, uid: str, stream: bytes) -> bytes:
    """A file whose pixels are one compressed stream that another library has made."""
    data.PixelData = encapsulate([stream])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = UID(uid)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def parts_of(data_sets: Sequence[Dataset], syntax: str = "explicit") -> tuple[Part, ...]:
    """The instances as the job reads them."""
    return tuple(Part(f"{number:04}.dcm", encoded(data, syntax)) for number, data in enumerate(data_sets))


def write(folder: Path, data_sets: Sequence[Dataset], syntax: str = "explicit") -> None:
    """Write the instances of a series into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts_of(data_sets, syntax):
        (folder / part.name).write_bytes(part.data)


def _image(pixels: NDArray[Any], modality: str, series: str, uid: str, *, is_enhanced: bool) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.SOPClassUID = _CLASSES[modality, is_enhanced]
    data.SOPInstanceUID = uid
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    data.Modality, data.PatientID, data.SeriesInstanceUID = modality, "patient 7", series
    data.StudyInstanceUID, data.FrameOfReferenceUID = f"{series}.0.1", f"{series}.0.2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    return data


def _plane(affine: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    columns = (_TO_LPS @ affine[:3, :2]).T
    lengths = np.linalg.norm(columns, axis=1)
    directions = columns / lengths[:, np.newaxis]
    return [float(value) for value in directions.ravel()], [float(lengths[1]), float(lengths[0])]


def _position(affine: NDArray[np.float64], number: int) -> list[float]:
    return [float(value) for value in _TO_LPS @ (affine @ np.array([0.0, 0.0, number, 1.0]))[:3]]
