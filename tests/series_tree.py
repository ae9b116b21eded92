"""DICOM series that pydicom writes from phantoms, in every transfer syntax, with the file names of several makers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medret.demo.phantoms import KINDS, phantom

ROOT = "1.2.826.0.1.3680043.10.999"
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big endian": "1.2.840.10008.1.2.2",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}
NAMES = ("{number:03}.dcm", "IM{number:04}", "{uid}", "{uid}.dcm", "MR.{uid}", "i{number}.IMA")
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


def series_uid(number: int) -> str:
    """The SeriesInstanceUID of the series of this number."""
    return f"{ROOT}.{number}"


def write_phantom_series(
    folder: Path, number: int, *, slices: int = 8, side: int = 16, syntax: str = "explicit", name: str = NAMES[0]
) -> list[Path]:
    """Write one axial series of a phantom. number: decides phantom and UIDs. Returns its files by position."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    kind = list(KINDS.values())[number % len(KINDS)]
    voxels, spacing_mm, _ = phantom(kind.name, number, (side, side, slices))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for z in range(slices):
        uid = f"{series_uid(number)}.{z + 1}"
        meta: Any = FileMetaDataset()
        ds: Any = pydicom.Dataset()
        ds.file_meta = meta
        meta.MediaStorageSOPClassUID = ds.SOPClassUID = CT if kind.modality == "CT" else MR
        meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
        meta.TransferSyntaxUID = SYNTAXES["explicit"]
        ds.ImageType, ds.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT" if kind.modality == "CT" else "MR"
        ds.PatientID, ds.PatientName = f"P{number // 4:03}", "Phantom^"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.7.{number // 4}", series_uid(number)
        ds.FrameOfReferenceUID = f"{ROOT}.8.{number}"
        ds.StudyDate, ds.SeriesDescription, ds.BodyPartExamined = "20200102", kind.name, kind.body_region.upper()
        ds.InstanceNumber, ds.SeriesNumber = (z * 5) % slices + 1 if slices % 5 else z + 1, 1  # not in spatial order
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, round(z * spacing_mm[2], 3)], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [spacing_mm[1], spacing_mm[0]], spacing_mm[2]
        ds.RescaleIntercept, ds.RescaleSlope = (-1024 if kind.modality == "CT" else 0), 1
        ds.Rows = ds.Columns = side
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        pixels = voxels[:, ::-1, z].T - ds.RescaleIntercept  # rows from anterior to posterior; x mirrored is still one
        ds.PixelData = pixels.astype("<u2").tobytes()
        if syntax in ("RLE", "JPEG-LS", "JPEG 2000"):
            ds.compress(SYNTAXES[syntax], generate_instance_uid=False)
        else:
            meta.TransferSyntaxUID = SYNTAXES[syntax]
            if syntax == "big endian":
                ds.PixelData = pixels.astype(">u2").tobytes()
            ds["PixelData"].VR = "OW"
        paths.append(folder / name.format(number=ds.InstanceNumber, uid=uid))
        implicit, little = syntax == "implicit", syntax != "big endian"
        pydicom.dcmwrite(paths[-1], ds, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return paths


def write_tree(root: Path, series: int, *, slices: int = 8) -> dict[str, list[Path]]:
    """Write patients with four series each, in folders of their own; returns the files of each by volume_id."""
    syntaxes = list(SYNTAXES)
    written = {}
    for number in range(series):
        volume_id = f"p{number // 4:03}/study/s{number:03}"
        syntax, name = syntaxes[number % len(syntaxes)], NAMES[number % len(NAMES)]
        side = 32 if syntax == "JPEG 2000" else 16  # the encoder wants five levels of resolution
        folder = root / volume_id
        written[volume_id] = write_phantom_series(folder, number, slices=slices, side=side, syntax=syntax, name=name)
    return written
