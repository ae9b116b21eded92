"""What a volume is read from: the bytes of one object, or the instances of a DICOM series."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from mmap import mmap

Bytes = bytes | mmap  # an object's bytes, or a memory-mapped file, of which only the accessed pages are read


@dataclass(frozen=True)
class Part:
    """One object of a series. name: below the series' folder, for messages; it has no effect on what is read."""

    name: str
    data: bytes = field(repr=False)


Content = Bytes | tuple[Part, ...]


def content_sha256(content: Content) -> str:
    """The sha256 of an object's bytes; of a series, that of its parts' sha256 digests in ascending order.

    Neither names nor the order of the parts count, so a series that was renamed or copied keeps its sha256.
    """
    if not isinstance(content, tuple):
        return hashlib.sha256(content).hexdigest()
    digests = sorted(hashlib.sha256(part.data).digest() for part in content)
    return hashlib.sha256(b"".join(digests)).hexdigest()
