"""Signatures of files that are neither NIfTI nor DICOM, and advice about each.

Nothing is decided here: the text becomes part of the reason of `not_nifti`, for whoever repairs the archive.
"""

from __future__ import annotations

import re

_RECOMPRESS = "unpack it, and store it as .nii or .nii.gz"
_CONVERT = "convert it to .nii.gz"
_UNZIP = "unpack it, into a folder with the whole series alone"
_PICTURE = "it is a picture, not a volume: remove it, or rename it"
_FETCH = "the message of a web server or a program was stored in place of the image: fetch it again"

# (pattern of the first bytes, kind of file, advice); the first match counts. Text may begin with a BOM and blanks.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), kind, advice)
    for pattern, kind, advice in (
        (rb"version https://git-lfs\.github\.com/spec/", "a git-lfs pointer, not the file", "run git lfs pull"),
        (rb"[^\0\n]{0,400}[/\\]annex[/\\]objects[/\\]", "a git-annex pointer, not the file", "run git annex get"),
        (rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", "an HTML page", _FETCH),
        (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(Error|Code|Message)\b", "an XML error message", _FETCH),
        (rb"(\xef\xbb\xbf)?\s*<\?xml", "an XML file", _CONVERT),
        (rb"(\xef\xbb\xbf)?\s*(\{\s*[\"}]|\[\s*[\"{\[\d\]])", "JSON text", _FETCH),
        (rb".{128}DICM", "a DICOM file", _UNZIP),
        (rb"\x08\x00[\x00-\x18]\x00(UL|UI|CS|DA|\x04\x00\x00\x00)", "a DICOM file without preamble", _UNZIP),
        (rb"\x1f\x8b", "a gzip stream within the gzip stream", "unpack it once"),
        (rb"[\x22-\x28]\xb5\x2f\xfd", "a zstd file", _RECOMPRESS),
        (rb"BZh[1-9]", "a bzip2 file", _RECOMPRESS),
        (rb"\xfd7zXZ\0", "an xz file", _RECOMPRESS),
        (rb"\x04\x22\x4d\x18", "an lz4 file", _RECOMPRESS),
        (rb"\x1f\x9d", "a file of Unix compress", _RECOMPRESS),
        (rb"PK(\x03\x04|\x05\x06|\x07\x08)", "a zip archive", _RECOMPRESS),
        (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _RECOMPRESS),
        (rb"Rar!\x1a\x07", "a RAR archive", _RECOMPRESS),
        (rb".{257}ustar", "a tar archive", _RECOMPRESS),
        (rb"\x89PNG\r\n", "a PNG image", _PICTURE),
        (rb"\xff\xd8\xff", "a JPEG image", _PICTURE),
        (rb"GIF8[79]a", "a GIF image", _PICTURE),
        (rb"(II\*\0|MM\0\*|II\+\0|MM\0\+)", "a TIFF image", _CONVERT),
        (rb"%PDF-", "a PDF document", "it is not a volume: remove it, or rename it"),
        (rb"\x89HDF\r\n", "an HDF5 file (MINC 2, perhaps)", _CONVERT),
        (rb"CDF[\x01\x02]", "a netCDF file (MINC 1, perhaps)", _CONVERT),
        (rb"NRRD0", "an NRRD file", _CONVERT),
        (rb"(ObjectType|NDims|CompressedData)\s*=", "a MetaImage (.mha, .mhd)", _CONVERT),
        (rb"\0\0\0\x01\0\0[\0-\x7f].\0\0[\0-\x7f].\0\0[\0-\x7f].\0\0", "a FreeSurfer MGH file", _CONVERT),
        (rb"\x93NUMPY", "a numpy array", "convert it to .nii.gz with its affine"),
    )
)  # fmt: skip
_LEAST_TEXT_BYTES = 4


def describe(head: bytes) -> str:
    """The kind of file and what to do about it; for an unknown kind, its first bytes.

    head: the first bytes of the object, decompressed if it is gzip; 272 bytes are enough for every signature.
    """
    for pattern, kind, advice in _SIGNATURES:
        if pattern.match(head):
            return f"it is {kind}: {advice}"
    if len(head) >= _LEAST_TEXT_BYTES and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"it is text, and begins with {head[:24]!r}"
    return f"it begins with {head[:8]!r}"
