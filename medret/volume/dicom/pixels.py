"""Decode the pixels of DICOM instances: native ones here, compressed ones by pydicom's decoders.

The size in a compressed stream is compared with the header before anything is decoded. Of the decoders that pydicom
offers, those are used that survive damaged streams (docs/decisions/0020).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError, require
from medret.visible import visible
from medret.volume.dicom.frames import Frame
from medret.volume.dicom.instances import Instance
from medret.volume.dicom.tags import numbers_of, text_of, unvalidated, values_of
from medret.volume.stored import Scaling

_NATIVE: dict[str, Literal["<", ">"]] = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.2": ">",
}
_PIXELS, _REAL_PIXELS = (0x7FE0, 0x0010), {(0x7FE0, 0x0008), (0x7FE0, 0x0009)}
_LONG_ELEMENT_BYTES = 12  # tag, type and length before a value, in explicit encodings
_UNDEFINED = 0xFFFFFFFF
_RLE = "1.2.840.10008.1.2.5"
_JPEG, _JPEG2000 = ("pylibjpeg", "libjpeg"), ("pylibjpeg", "openjpeg")
# transfer syntax -> (pydicom's name of the decoder, the package that it imports)
_DECODERS = {
    _RLE: ("pydicom", "pydicom"),
    **{f"1.2.840.10008.1.2.4.{number}": _JPEG for number in (50, 51, 57, 70, 80, 81)},  # also lossless, and JPEG-LS
    **{f"1.2.840.10008.1.2.4.{number}": _JPEG2000 for number in (90, 91, 201, 202, 203)},  # also with high throughput
}
_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream
_WITHIN_BYTES = 1 << 16  # where a codestream begins in a file of boxes
_LEAST_FRAGMENT_BYTES = 8
_OUTSIDE = 0.05  # of the range of the other voxels: padding that is nearer to them changes no window


def check_pixels(instance: Instance) -> None:
    """Refuse an instance whose pixels cannot be those of its header, before memory is taken for them.

    Raises VolumeError INSTANCE_DAMAGED, SYNTAX_UNSUPPORTED.
    """
    if instance.syntax not in _NATIVE and instance.syntax not in _DECODERS:
        raise VolumeError(
            QuarantineCode.SYNTAX_UNSUPPORTED,
            f"its pixels are encoded as {_syntax_name(instance.syntax)}, for which there is no decoder",
        )
    value, _ = _value(instance)
    if instance.syntax not in _NATIVE:
        needed, kind = instance.frames * _LEAST_FRAGMENT_BYTES, "at least"
    else:
        needed, kind = instance.voxels_bytes, "expected"
    if len(value) < needed:
        raise instance.damaged(f"its pixels have {len(value)} bytes, {kind} {needed} for {instance.frames} frames")


def decoded(frames: Sequence[Frame], dtype: np.dtype[Any], scaling: Scaling) -> NDArray[Any]:
    """(x, y, z) voxels of a volume, first axis fastest in memory. frames: its slices in order, of one shape.

    dtype: of the result. Values are stored ones if all frames have this scaling; else, as float32, real ones.
    MONOCHROME1 is turned, so that greater values are brighter. Padding becomes the darkest value.
    Raises VolumeError INSTANCE_DAMAGED.
    """
    rows, columns = frames[0].shape
    slices = np.empty((len(frames), rows, columns), dtype=dtype)
    paddings: dict[int, NDArray[np.bool_]] = {}
    wanted: defaultdict[Instance, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, frame in enumerate(frames):
        wanted[frame.instance][frame.number].append(place)
    with unvalidated():
        for instance, places in wanted.items():
            is_dark = text_of(instance.header, "PhotometricInterpretation") == "MONOCHROME1"
            for number, whole in _images(instance, places):
                for place in places[number]:
                    top, left = frames[place].tile
                    image = whole[top : top + rows, left : left + columns]
                    padding = _padding(instance, image)
                    if padding is not None:
                        paddings[place] = padding
                    if is_dark:
                        image = _turned(image, instance)
                    own = frames[place].scaling
                    slices[place] = image if own == scaling else own.real(image)
    if paddings:
        _darken(slices, paddings)
    return slices.T


def _value(instance: Instance) -> tuple[memoryview, bool]:
    """The bytes of the pixels, and whether 8-bit values lie in big-endian words."""
    data, order = instance.data, _NATIVE.get(instance.syntax, "<")
    if len(data) < _LONG_ELEMENT_BYTES:
        raise instance.damaged("it has no pixels")
    group, element = struct.unpack_from(f"{order}HH", data)
    if (group, element) in _REAL_PIXELS:
        raise VolumeError(QuarantineCode.DATATYPE_UNSUPPORTED, "its pixels are real numbers, expected whole ones")
    if (group, element) != _PIXELS:
        raise instance.damaged("it has no pixels")
    vr = bytes(data[4:6])  # or the lower half of the length, which is even and so equals none of these
    at = _LONG_ELEMENT_BYTES if vr in (b"OB", b"OW", b"UN") else 8
    (length,) = struct.unpack_from(f"{order}I", data, at - 4)
    if (length == _UNDEFINED) == (instance.syntax in _NATIVE):
        name = _syntax_name(instance.syntax)
        raise instance.damaged(f"its pixels are not encoded as its transfer syntax says ({name})")
    if length == _UNDEFINED:
        return data[at:], False
    if at + length > len(data):
        raise instance.damaged(f"its pixels end after {len(data) - at} of {length} bytes")
    return data[at : at + length], order == ">" and vr == b"OW"


def _images(instance: Instance, wanted: Collection[int]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The number and the (rows, columns) stored values of each frame that is wanted."""
    value, in_words = _value(instance)
    dtype, rows, columns = instance.dtype, instance.rows, instance.columns
    if instance.syntax in _NATIVE:
        count = instance.frames * rows * columns
        if in_words and dtype.itemsize == 1:
            flat = np.frombuffer(value, np.uint16, len(value) // 2).byteswap().view(dtype)[:count]
        else:
            flat = np.frombuffer(value, dtype.newbyteorder(_NATIVE[instance.syntax]), count)
        images = flat.reshape(-1, rows, columns)
        yield from ((number, _significant(images[number], instance)) for number in wanted)
        return
    left = set(wanted)
    for number, data in enumerate(_encoded_frames(instance, value)):
        if number in left:
            yield number, _decompressed(instance, data)
            left.remove(number)
    if left:
        raise instance.damaged(f"it has no pixels for frame {min(left) + 1} of {instance.frames}")


def _encoded_frames(instance: Instance, value: memoryview) -> Iterator[bytes]:
    from pydicom.encaps import generate_frames

    names = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    offsets, lengths = (next(iter(values_of(instance.header, name)), None) for name in names)
    extended = (offsets, lengths) if isinstance(offsets, bytes) and isinstance(lengths, bytes) else None
    try:
        yield from generate_frames(bytes(value), number_of_frames=instance.frames, extended_offsets=extended)
    except MemoryError:
        raise
    except Exception as error:  # whatever pydicom raises about these bytes
        raise instance.damaged(f"its compressed pixels are damaged ({error})") from error


def _decompressed(instance: Instance, data: bytes) -> NDArray[Any]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    plugin, package = _DECODERS[instance.syntax]
    require(package)
    stated, found = (instance.rows, instance.columns, 1), coded_size(data)
    if instance.syntax != _RLE and found != stated:
        raise instance.damaged(
            f"its compressed stream has {found or 'no'} rows, columns and components, expected {stated}"
        )
    bits = 8 * instance.dtype.itemsize
    options: dict[str, Any] = {
        "rows": instance.rows,
        "columns": instance.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": bits,
        "bits_stored": bits if instance.syntax == _RLE else instance.number("BitsStored", 1, bits, default=bits),
        "pixel_representation": int(instance.dtype.kind == "i"),
        "pixel_keyword": "PixelData",
    }
    try:
        decoder = get_decoder(instance.syntax)
        image, _ = decoder.as_array(encapsulate([data]), index=0, decoding_plugin=plugin, **options)
    except MemoryError:
        raise
    except Exception as error:  # whatever the decoder raises about these bytes
        raise instance.damaged(f"its compressed pixels are damaged ({error})") from error
    return _significant(image, instance) if instance.syntax == _RLE else image


def coded_size(data: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG, JPEG-LS or JPEG 2000 stream, from its header; None if it tells none."""
    start = data.find(_SIZ, 0, _WITHIN_BYTES)
    if data[:2] != b"\xff\xd8" and start >= 0:
        if len(data) < start + 42:
            return None
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        (components,) = struct.unpack_from(">H", data, start + 40)
        return bottom - top, right - left, components
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # alone, without a length
            at += 2
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # start of a frame
            rows, columns, components = struct.unpack_from(">HHB", data, at + 5)
            return rows, columns, components
        elif marker in (0xD9, 0xDA, 0xDE):  # the end, a scan, or a hierarchy of frames
            return None
        else:
            at += 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])
    return None


def _significant(image: NDArray[Any], instance: Instance) -> NDArray[Any]:
    """Without the bits beside the stored ones, which old scanners filled with overlays."""
    bits = image.dtype.itemsize * 8
    stored = instance.number("BitsStored", 1, bits, default=bits)
    if stored == bits:
        return image
    high = instance.number("HighBit", stored - 1, bits - 1, default=stored - 1)
    native = image.astype(image.dtype.newbyteorder("="))
    native <<= native.dtype.type(bits - 1 - high)
    native >>= native.dtype.type(bits - stored)
    return native


def _turned(image: NDArray[Any], instance: Instance) -> NDArray[Any]:
    """The values of MONOCHROME1 in reverse, within the stored bits."""
    if image.dtype.kind == "i":
        return ~image
    bits = image.dtype.itemsize * 8
    greatest = (1 << instance.number("BitsStored", 1, bits, default=bits)) - 1
    turned: NDArray[Any] = image.dtype.type(greatest) - image
    return turned


def _padding(instance: Instance, image: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which stored values are padding; None if none is."""
    header = instance.header
    value = numbers_of(header, "PixelPaddingValue")
    if not value:
        return None
    bounds = [*value[:1], *(numbers_of(header, "PixelPaddingRangeLimit")[:1] or value[:1])]
    least = np.iinfo(image.dtype).min
    low, high = sorted((int(bound) - least) % (1 << (8 * image.dtype.itemsize)) + least for bound in bounds)
    padding: NDArray[np.bool_] = (image >= low) & (image <= high) if low < high else image == low
    return padding if padding.any() else None


def _darken(slices: NDArray[Any], paddings: dict[int, NDArray[np.bool_]]) -> None:
    """Set padding to the least of the other values, where it lies outside their range and would distort a window."""
    padded: list[float] = []
    inside: list[float] = []
    for number, image in enumerate(slices):
        mask = paddings.get(number)
        parts = ((image, inside),) if mask is None else ((image[~mask], inside), (image[mask], padded))
        for part, ends in parts:
            if part.size:
                ends += [float(part.min()), float(part.max())]
    if not inside or not padded:
        return
    least, most = min(inside), max(inside)
    margin = _OUTSIDE * (most - least)
    if min(padded) < least - margin or max(padded) > most:
        for number, mask in paddings.items():
            slices[number][mask] = least


def _syntax_name(uid: str) -> str:
    from pydicom._uid_dict import UID_dictionary

    return UID_dictionary[uid][0] if uid in UID_dictionary else visible(uid) or "an unknown syntax"
