"""Queries that are files: a volume in one object, a folder with a DICOM series, or a list of a series' files.

Only reading is done here; `medret.search.resolve` slices and embeds what was read.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medret.errors import NotFoundError, UsageError, VolumeError
from medret.storage import normalise_uri, read_uri, redacted, scheme_of

if TYPE_CHECKING:
    from medret.volume import Content

NAMED = 5  # volumes of a folder, in messages

_UID = re.compile(r"(?=.{3,64}$)[0-9]+(\.[0-9]+)+")  # medret.archive is imported only where something is read

File = str | os.PathLike[str]


def is_file(query: File) -> bool:
    """Whether a text or path names a file, a folder or any URI rather than a volume_id; raises UsageError.

    FOLDER/SeriesInstanceUID names a series of several in a folder. What cannot be looked at is no file: the name of a
    volume may be too long for a path.
    """
    text = os.fspath(query)
    if not text:
        raise UsageError("query is empty: give a NIfTI file, a DICOM folder, a URI, a volume_id or an array of vectors")
    if "://" in text:
        return True
    if is_there(Path(normalise_uri(text))) or is_series_in_folder(text):
        return True
    if isinstance(query, os.PathLike):
        raise UsageError(f"query {text}: no such file or folder")
    return False


def is_series_in_folder(text: str) -> bool:
    """Whether a text that names nothing on disk is FOLDER/SeriesInstanceUID for a folder that there is."""
    path = Path(normalise_uri(text))
    try:
        return _UID.fullmatch(path.name) is not None and path.parent.is_dir() and not path.exists()
    except OSError:
        return False


def is_there(path: Path) -> bool:
    """Whether a path is that of a file or folder that can be looked at."""
    try:
        return path.is_file() or path.is_dir()
    except OSError:
        return False


def read_query(uri: str) -> bytes:
    """The bytes of a query; raises UsageError or StorageError naming it."""
    try:
        return read_uri(uri)
    except FileNotFoundError as error:
        raise NotFoundError(f"query {redacted(uri)}: no such file") from error


def read_volume_query(uri: str) -> Content:
    """What a query that is a volume is read from; a file that cannot be a volume is not read whole.

    uri: of an object, or of a folder with one series, or FOLDER/SeriesInstanceUID. Raises UsageError or
    StorageError naming it, and for a folder with several volumes naming these.
    """
    from medret.volume import Limits, fetch_volume

    try:
        return fetch_volume(uri, Limits())
    except FileNotFoundError as error:
        there = _volumes_in(uri) or ": no such file, folder or series"
        raise NotFoundError(f"query {redacted(uri)}{there}") from error
    except UsageError as error:  # it holds several series, or cannot be opened
        if there := _volumes_in(uri):
            raise UsageError(f"query {redacted(uri)} is not one volume{there}") from error
        raise
    except VolumeError as error:
        raise UsageError(f"query {redacted(uri)} cannot be used: {error.code}: {error.reason}") from error


def _volumes_in(uri: str) -> str:
    """What a folder on this machine holds, for a message, and what to do; "" for what is no such folder."""
    from medret.archive import list_archive

    if scheme_of(uri) or not Path(uri).is_dir():
        return ""
    try:
        listing = list_archive(uri)
    except UsageError:  # nothing is there
        return ": the folder is empty"
    instances = dict(zip(listing.series["volume_id"].to_pylist(), listing.series.to_pylist(), strict=True))
    names = []
    for volume_id in listing.objects["volume_id"].slice(0, NAMED).to_pylist():
        series = instances.get(volume_id)
        about = f" ({series['modality'] or 'DICOM'}, {_counted(series['instances'])})" if series else ""
        names.append(f"{posixpath.join(uri, volume_id)}{about}")
    count = listing.objects.num_rows
    if not names:
        skipped = ", ".join(f"{rule} {number}" for rule, number in sorted(listing.skipped.items()))
        return f": the folder holds no DICOM series and no NIfTI file ({skipped})"
    more = f" and {count - NAMED} more" if count > NAMED else ""
    which = "1 volume; give it" if count == 1 else f"{count} volumes; give one of them"
    return f": the folder holds {which}: {', '.join(names)}{more}"


def _counted(instances: int) -> str:
    return "1 instance" if instances == 1 else f"{instances} instances"


def read_files(files: Sequence[File]) -> Content:
    """The instances of a series from a list of their files; a list of one file is that file. Raises UsageError."""
    from medret.volume import Part

    if not files or not all(isinstance(each, str | os.PathLike) for each in files):
        raise UsageError("query is a list that does not hold paths or URIs alone: give the files of one DICOM series")
    uris = [normalise_uri(each) for each in files]
    if len(uris) == 1:
        return read_volume_query(uris[0])
    return tuple(Part(posixpath.basename(uri), read_query(uri)) for uri in uris)


def name_of(files: Sequence[File]) -> str:
    """The files of a series in a few words, for messages."""
    return os.fspath(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
