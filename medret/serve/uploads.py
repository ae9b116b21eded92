"""Receive uploaded files: from a multipart body to a file without a name, within bounds of size, number and time.

The file has no name, so nothing that was uploaded outlives its request, or the process, whatever ends it; and no name
in an upload becomes a path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from mmap import ACCESS_READ, ALLOCATIONGRANULARITY, mmap
from typing import TYPE_CHECKING, BinaryIO

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from medret.errors import QuarantineCode, VolumeError
from medret.serve.messages import Refused
from medret.visible import visible
from medret.volume import Content, Part
from medret.volume.open import is_zip

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MULTIPART = "multipart/form-data"
FILE, OPTIONS, MASK = "file", "options", "mask"  # the names of the parts
FILES_MAX = 10_000  # instances of one series
OPTIONS_BYTES = 1 << 20
NAME_MAX = 255
FLUSH_BYTES = 1 << 20  # received bytes that are written at a time
WITHOUT_NAME = "upload"
LOGGER = logging.getLogger(__name__)


@dataclass
class Piece:
    """One part of the body. name: what the sender calls it. at, size: where it lies in the file."""

    part: str
    name: str
    at: int
    size: int = 0


@dataclass
class Upload:
    """An uploaded volume. Its bytes stay on disk until they are read, and are read at most once into memory."""

    spool: BinaryIO
    files: list[Piece] = field(default_factory=list)
    mask: Piece | None = None
    options: bytes = b"{}"

    @property
    def name(self) -> str:
        """The file in a few words; of the instances of a series, the first and how many more."""
        others = len(self.files) - 1
        return self.files[0].name + (f" and {others} more" if others else "")

    @property
    def size_bytes(self) -> int:
        """Of the files, without options and mask."""
        return sum(piece.size for piece in self.files)

    def content(self) -> Content:
        """The volume: a file as a memory map, several as the instances of a series. Raises VolumeError."""
        if len(self.files) > 1:
            return tuple(Part(piece.name, self._read(piece)) for piece in self.files)
        (piece,) = self.files
        content = self._whole(piece)
        if content[:4] == b"PAR1":
            raise VolumeError(QuarantineCode.NOT_NIFTI, "it is a Parquet file: send a volume, or vectors as JSON")
        return content

    def mask_content(self) -> Content | None:
        """The mask, if there is one."""
        return None if self.mask is None else self._whole(self.mask)

    def _whole(self, piece: Piece) -> bytes | mmap:
        start = os.pread(self.spool.fileno(), min(piece.size, 4), piece.at)
        if not piece.size or is_zip(start):  # a zip is read as bytes in any case
            return self._read(piece)
        return mmap(self.spool.fileno(), piece.size, access=ACCESS_READ, offset=piece.at)

    def _read(self, piece: Piece) -> bytes:
        data = bytearray(piece.size)
        view, at = memoryview(data), 0
        while at < piece.size:
            at += os.preadv(self.spool.fileno(), [view[at:]], piece.at + at)
        return bytes(data)


@asynccontextmanager
async def received(request: Request, *, max_bytes: int, seconds: float) -> AsyncIterator[Upload]:
    """Receive the body of a request; raises Refused. What was received is gone when the context ends."""
    check_length(request, max_bytes)
    with tempfile.TemporaryFile() as spool:
        try:
            async with asyncio.timeout(seconds):
                upload = await _receive(request, spool, max_bytes)
        except TimeoutError as error:
            raise too_slow(seconds) from error
        yield upload


def check_length(request: Request, max_bytes: int) -> None:
    """Refuse a body by the length that its header announces."""
    length = request.headers.get("content-length", "0")
    if not (length.isdecimal() and length.isascii()):
        raise Refused(400, "wrong_request", "Content-Length is not a number")
    if len(length) > 18 or int(length) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> Refused:
    """The refusal of a body that is longer than this server takes."""
    return Refused(413, "too_large_upload", f"the request is larger than {max_bytes} bytes, the limit of this server")


def too_slow(seconds: float) -> Refused:
    """The refusal of a body that takes too long to arrive."""
    return Refused(408, "too_slow", f"the request was not complete after {seconds:g} seconds")


async def _receive(request: Request, spool: BinaryIO, max_bytes: int) -> Upload:
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    boundary = parameters.get(b"boundary", b"")
    if kind != MULTIPART.encode() or not boundary:
        raise Refused(422, "wrong_request", f"the body is {kind.decode('latin-1')!r}, expected {MULTIPART}")
    parts = _Parts(spool)
    received_bytes = 0
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for chunk in request.stream():
            received_bytes += len(chunk)
            if received_bytes > max_bytes:
                raise too_large(max_bytes)
            parser.write(chunk)
            if parts.unwritten >= FLUSH_BYTES:
                await to_thread.run_sync(parts.flush)
        parser.finalize()
    except FormParserError as error:
        raise Refused(422, "wrong_request", f"the multipart body is damaged: {visible(str(error))}") from error
    await to_thread.run_sync(parts.flush)
    return parts.finished()


class _Parts:
    """Follows the parser through a body, and gathers its parts."""

    def __init__(self, spool: BinaryIO) -> None:
        self._upload = Upload(spool)
        self._header: tuple[bytearray, bytearray] = bytearray(), bytearray()
        self._disposition = b""
        self._piece: Piece | None = None
        self._options: bytearray | None = None
        self._chunks: list[tuple[int, bytearray]] = []
        self._end = 0  # of the pieces in the spool
        self._is_complete = False
        self.unwritten = 0

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._body_end,
        }

    def _begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        field_name, value = map(bytes, self._header)
        if field_name.lower() == b"content-disposition":
            self._disposition = value
        self._header = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        _, given = parse_options_header(self._disposition)
        part = given.get(b"name", b"").decode("utf-8", "replace")
        if part == OPTIONS:
            if self._options is not None:
                raise Refused(422, "wrong_request", f"there are two parts '{OPTIONS}'")
            self._options = bytearray()
            return
        if part not in (FILE, MASK):
            expected = f"{FILE}, {OPTIONS} or {MASK}"
            raise Refused(422, "wrong_request", f"there is a part '{visible(part[:NAME_MAX])}', expected {expected}")
        start = -(-self._end // ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY  # where a memory map may begin
        self._piece = Piece(part, _name(given.get(b"filename", b"")), start)
        if part == MASK:
            if self._upload.mask is not None:
                raise Refused(422, "wrong_request", f"there are two parts '{MASK}'")
            self._upload.mask = self._piece
            return
        if len(self._upload.files) == FILES_MAX:
            raise Refused(413, "too_large_upload", f"there are more than {FILES_MAX} files")
        self._upload.files.append(self._piece)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._piece is None:
            assert self._options is not None
            self._options += data[start:end]
            if len(self._options) > OPTIONS_BYTES:
                raise Refused(413, "too_large_upload", f"part '{OPTIONS}' is larger than {OPTIONS_BYTES} bytes")
            return
        at = self._piece.at + self._piece.size
        if self._chunks and at == self._chunks[-1][0] + len(self._chunks[-1][1]):
            self._chunks[-1][1].extend(data[start:end])
        else:
            self._chunks.append((at, bytearray(data[start:end])))
        self._piece.size += end - start
        self._end = self._piece.at + self._piece.size
        self.unwritten += end - start

    def _part_end(self) -> None:
        self._piece = None

    def _body_end(self) -> None:
        self._is_complete = True

    def flush(self) -> None:
        """Write what was received."""
        try:
            for at, data in self._chunks:
                view = memoryview(data)
                while view:
                    written = os.pwrite(self._upload.spool.fileno(), view, at)
                    view, at = view[written:], at + written
        except OSError as error:
            LOGGER.warning("an upload cannot be written to %s: %s", tempfile.gettempdir(), error)
            raise Refused(503, "no_room", "this server has no room for the upload", retry_after=60) from error
        self._chunks.clear()
        self.unwritten = 0

    def finished(self) -> Upload:
        """The upload, once the body has ended; raises Refused."""
        if not self._is_complete:
            raise Refused(422, "wrong_request", "the multipart body breaks off before its last boundary")
        if not self._upload.files:
            raise Refused(422, "wrong_request", f"there is no part '{FILE}'")
        if self._options is not None:
            self._upload.options = bytes(self._options)
        return self._upload


def _name(sent: bytes) -> str:
    """The last component of a file name, made visible."""
    text = sent.decode("utf-8", "replace").replace("\\", "/").rstrip("/").rpartition("/")[2]
    return visible(text)[-NAME_MAX:] or WITHOUT_NAME
