"""Look at the first bytes of objects, to find out what they are: instances of a series, or a zip or tar of them.

What cannot be read is not passed over, so that a lost permission does not look like an archive that shrank. A store
that does not answer ends the listing.
"""

from __future__ import annotations

import errno
import io
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from medret.archive.dicom_head import HEAD_BYTES, DicomHead, is_uid, kind_of, read_head
from medret.archive.series import UNCLEAR, Division, divided, grouped, is_candidate
from medret.errors import UsageError
from medret.storage import Identity, StoredObject, folder_entries, reaching

AT_ONCE = 32  # looks
_TEXT_BYTES = 272  # without a zero byte among them, an object is text
_TAR_BYTES = 1 << 20  # of a tar, to look for members in
_INFLATED_BYTES = 4 << 20
_ZIP_BYTES = 32 << 20  # of a zip: of its list of members, and of a few of these
_ZIP_BLOCK = 64 << 10  # per request
_MEMBERS = 8  # candidates in a zip or tar that are looked at
_UNCLEARABLE = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ELOOP)


def head_at(uri: str) -> DicomHead | None:
    """The head of an object; None if it is not DICOM, UNCLEAR if that cannot be told. Raises StorageError."""

    def look() -> DicomHead | None:
        data = StoredObject(uri).read(0, HEAD_BYTES)
        is_text = data and b"\0" not in data[:_TEXT_BYTES]
        return read_head(data) or (None if is_text else UNCLEAR)

    return _unless_unreadable(uri, look)


def packed_head(uri: str, size_bytes: int) -> DicomHead | None:
    """The head of the first image of a zip or tar, else of another DICOM object in it; otherwise as `head_at`.

    Only its first members are looked at.
    """

    def look() -> DicomHead | None:
        source = StoredObject(uri)
        if uri.lower().endswith(".zip"):
            members = _zip_members(source, size_bytes)
        else:
            members = _tar_members(source.read(0, _TAR_BYTES))
        other: DicomHead | None = None
        for head in filter(None, map(read_head, members)):
            if kind_of(head) == "image":
                return head
            other = other or head  # a localizer may come first
        return other

    return _unless_unreadable(uri, look)


def _unless_unreadable(uri: str, look: Callable[[], DicomHead | None]) -> DicomHead | None:
    with reaching(uri, "read"):
        try:
            return look()
        except (FileNotFoundError, PermissionError):
            return UNCLEAR
        except OSError as error:
            if error.errno not in _UNCLEARABLE:
                raise
            return UNCLEAR


class _Ranges(io.RawIOBase):
    """An object as a file that is read in ranges, and not without end."""

    def __init__(self, source: StoredObject, size_bytes: int) -> None:
        self._source, self._size = source, size_bytes
        self._at, self._left = 0, _ZIP_BYTES
        self.failure: Exception | None = None  # of the store: zipfile takes it for a fault of the archive

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._left -= len(buffer)
        if self._left < 0:
            raise zipfile.BadZipFile("its list of members is too long")
        try:
            end = min(self._at + len(buffer), self._size)
            data = self._source.read(self._at, end) if self._at < end else b""
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _zip_members(source: StoredObject, size_bytes: int) -> Iterator[bytes]:
    """The first bytes of the first candidates in a zip; none if it is damaged or encrypted."""
    ranges = _Ranges(source, size_bytes)
    try:
        with zipfile.ZipFile(io.BufferedReader(ranges, _ZIP_BLOCK)) as file:
            members = [each for each in file.infolist() if _is_readable(each)]
            for member in members[:_MEMBERS]:
                with file.open(member) as content:
                    yield content.read(HEAD_BYTES)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, ArithmeticError, zlib.error):
        if ranges.failure is not None:
            raise ranges.failure from None


def _tar_members(start: bytes) -> Iterator[bytes]:
    """The first bytes of the first candidates in the start of a tar, which may be compressed."""
    try:
        if start.startswith(b"\x1f\x8b"):
            start = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, _INFLATED_BYTES)
        with tarfile.open(fileobj=io.BytesIO(start), mode="r:") as file:
            seen = 0
            for member in file:
                if not (member.isfile() and _is_member(member.name)):
                    continue
                content = file.extractfile(member)
                yield content.read(HEAD_BYTES) if content else b""
                seen += 1
                if seen == _MEMBERS:
                    return
    except (tarfile.TarError, RuntimeError, ValueError, EOFError, ArithmeticError, OSError, zlib.error):
        return


def _is_readable(member: zipfile.ZipInfo) -> bool:
    """Whether a member may be an instance, and is compressed so that its start can be read without the rest."""
    in_parts = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return in_parts and not member.is_dir() and _is_member(member.filename)


def _is_member(path: str) -> bool:
    return is_candidate(posixpath.basename(path))


def heads_in(folder: str, names: Collection[str], pool: ThreadPoolExecutor) -> dict[str, DicomHead | None]:
    """The heads of objects in a folder."""
    return dict(zip(names, pool.map(head_at, [f"{folder.rstrip('/')}/{name}" for name in names]), strict=True))


def candidates_in(folder: str) -> dict[str, Identity]:
    """The objects in a folder, listed now, that may be instances of a series."""
    return {name: identity for name, identity in folder_entries(folder).items() if is_candidate(name)}


def look_into(folder: str, entries: Mapping[str, Identity], *, mixed: bool) -> Division:
    """Divide a folder into its series. entries: its candidates. mixed: look at all of them."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return divided(grouped(entries), lambda names: heads_in(folder, names, pool), lambda: entries, mixed=mixed)


def find_series(
    uri: str, names: Collection[str] | None = None, *, alone: bool = False
) -> tuple[str, dict[str, Identity]]:
    """The folder of a series and its objects, as they are now; by its URI alone, as docs/indexing.md says.

    names: of its objects. alone: whether a folder of this URI is known to hold nothing else. What is known need not be
    found out by looks. Raises FileNotFoundError if there is no such series, UsageError if the URI is that of a folder
    with several, or whatever the folder's filesystem raises.
    """
    parent, _, uid = uri.rstrip("/").rpartition("/")
    folder, entries = uri.rstrip("/"), candidates_in(uri)
    if not entries and is_uid(uid):
        folder, entries = parent, candidates_in(parent)
    elif alone and names is None:
        names = entries
    if names is None and entries:
        series = look_into(folder, entries, mixed=folder == parent).series
        if folder == parent:
            series = tuple(one for one in series if one.uid == uid)
        if len(series) > 1:
            listed = ", ".join(f"{uri}/{one.uid}" for one in series[:3])
            raise UsageError(f"{uri} holds {len(series)} DICOM series; name one of them: {listed}, ...")
        names = [name for one in series for name in (entries if one.names is None else one.names)]
    found = {name: entries[name] for name in sorted(names or ()) if name in entries}
    if not found:
        raise FileNotFoundError(errno.ENOENT, "it is neither an object nor a folder with a DICOM series", uri)
    return folder, found
