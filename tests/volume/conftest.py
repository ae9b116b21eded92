"""Phantoms: small volumes with a known shape inside, and any NIfTI file made of them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

Voxels = NDArray[Any]
MakeNifti = Callable[..., bytes]


def body(shape: tuple[int, int, int] = (36, 44, 28)) -> NDArray[np.float64]:
    """(x, y, z) in RAS+ order, 0..1: an ellipsoid, a bright ball on its right, a dark one in front, a rod upwards."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    image = np.zeros(shape)
    image[(x / 0.8) ** 2 + (y / 0.85) ** 2 + (z / 0.9) ** 2 < 1] = 0.4
    image[(x - 0.4) ** 2 + (y + 0.1) ** 2 + (z + 0.2) ** 2 < 0.06] = 0.9
    image[x**2 + (y - 0.5) ** 2 + z**2 < 0.05] = 0.2
    image[(abs(x + 0.3) < 0.12) & (abs(y + 0.3) < 0.12) & (z > -0.5) & (z < 0.75)] = 0.7
    return image + 0.02 * np.sin(9 * x + 5 * y + 7 * z) * (image > 0)


def stored_as(image: Voxels, affine: NDArray[np.float64], axcodes: str) -> tuple[Voxels, NDArray[np.float64]]:
    """The same anatomy in another storage order, with the affine that says so."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axcodes)))
    return apply_orientation(image, change), affine @ inv_ornt_aff(change, image.shape)


def nifti(
    voxels: Voxels,
    affine: NDArray[np.float64] | None = None,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    codes: tuple[int, int] = (0, 1),
    slope: float = float("nan"),
    inter: float = float("nan"),
    version: int = 1,
    big_endian: bool = False,
    compress: bool = True,
    patch: dict[int, bytes] | None = None,
) -> bytes:
    """A .nii or .nii.gz file. codes: (qform, sform). patch: offset -> bytes written over the header at the end."""
    order: Literal["<", ">"] = ">" if big_endian else "<"
    header: Any = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=order)  # type: ignore[no-untyped-call]
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    matrix = np.diag([*spacing, 1.0]) if affine is None else affine
    header.set_qform(matrix, code=codes[0])
    header.set_sform(matrix, code=codes[1])
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["vox_offset"] = 352 if version == 1 else 544
    header["magic"] = b"n+1" if version == 1 else b"n+2\0\r\n\032\n"
    head = bytearray(header.binaryblock + b"\0\0\0\0")
    for offset, value in (patch or {}).items():
        head[offset : offset + len(value)] = value
    data = bytes(head) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")
    return gzip.compress(data, 1) if compress else data


def hounsfield(image: NDArray[np.float64]) -> NDArray[np.int16]:
    """The phantom as CT: air outside, tissue from fat to bone inside."""
    return np.where(image > 0, image * 600 - 200, -1000).round().astype(np.int16)


def f32(value: float) -> bytes:
    """A little-endian float32, for `patch`."""
    return struct.pack("<f", value)


def i16(*values: int) -> bytes:
    """Little-endian int16, for `patch`."""
    return struct.pack(f"<{len(values)}h", *values)


class Phantoms:
    """The functions of this file, for tests: `phantoms.nifti(...)`."""

    body = staticmethod(body)
    stored_as = staticmethod(stored_as)
    nifti = staticmethod(nifti)
    hounsfield = staticmethod(hounsfield)
    f32 = staticmethod(f32)
    i16 = staticmethod(i16)


@pytest.fixture(scope="session")
def phantoms() -> type[Phantoms]:
    return Phantoms


@pytest.fixture(scope="session")
def mr() -> NDArray[np.uint16]:
    """The phantom as MRI, RAS+ order."""
    return (body() * 1000).round().astype(np.uint16)


@pytest.fixture(scope="session")
def ct() -> NDArray[np.int16]:
    """The phantom as CT, RAS+ order."""
    return hounsfield(body())
