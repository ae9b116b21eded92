r"""Find volumes by the names that people write into tables.

A name may be a volume's id, its whole URI or any tail of it, with `/` or `\`, in any Unicode form, with or without .nii
or .nii.gz. An absolute path of another machine (`D:\data\sub-01\a.nii.gz`, `/mnt/data/sub-01/a.nii.gz`) ends in the id.
Whole URIs of remote stores are compared literally. A name matches the volume that it fits best, if there is just one.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from medret.archive.listing import Listing

_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_DRIVE = re.compile(r"/?([A-Za-z]:/.*)", re.DOTALL)


@dataclass(frozen=True)
class Match:
    """The volumes that a name matches.

    volume_ids: none, one, or several that it fits equally well.
    located: the name contains part of the archive's own location.
    root: for a path of another machine, the part before the volume's id.
    """

    volume_ids: tuple[str, ...] = ()
    located: bool = False
    root: str | None = None


@dataclass(frozen=True)
class _Name:
    """A name in parts. remote: it is a URI. absolute: it is a URI or an absolute path."""

    folders: tuple[str, ...]
    file: str
    remote: bool
    absolute: bool

    @property
    def stem(self) -> str:
        return _SUFFIX.sub("", self.file)


@dataclass(frozen=True)
class _Volume:
    volume_id: str
    below: _Name  # the id
    whole: _Name  # the URI


class Finder:
    """The volumes of a listing, by name. names: those that will be asked for; others find nothing."""

    def __init__(self, listing: Listing, names: Collection[str]) -> None:
        ids = listing.objects["volume_id"]
        self._ids = frozenset(ids.filter(pc.is_in(ids, pa.array(names, pa.string()))).to_pylist())
        stems = pa.array({_parse(name).stem for name in names}, pa.string())
        self._by_stem: dict[str, list[_Volume]] = defaultdict(list)
        for volume_id in ids.filter(pc.is_in(_stems(listing), stems)).to_pylist():
            whole = _parse(listing.uri_of(volume_id))
            self._by_stem[whole.stem].append(_Volume(volume_id, _parse(volume_id), whole))

    def find(self, name: str) -> Match:
        """The volumes that `name` fits best."""
        if name in self._ids:
            return Match((name,))
        parsed = _parse(name)
        fits = [(fit, volume) for volume in self._by_stem.get(parsed.stem, ()) if (fit := _fit(parsed, volume))]
        if not fits:
            return Match()
        best = min(fit for fit, _ in fits)
        volumes = [volume for fit, volume in fits if fit == best]
        first, depth = volumes[0], len(parsed.folders) - len(volumes[0].below.folders)
        foreign = best[1] == _FOREIGN
        return Match(
            tuple(volume.volume_id for volume in volumes),
            located=not foreign and len(parsed.folders) > len(first.below.folders),
            root="/".join(parsed.folders[:depth]) or "/" if foreign else None,
        )


_ITSELF, _TAIL, _FOREIGN = range(3)


def _fit(name: _Name, volume: _Volume) -> tuple[bool, int, int] | None:
    """How well a name with the right stem fits (smaller is better); None if it does not."""
    other_suffix = name.file != volume.whole.file
    count, whole, below = len(name.folders), volume.whole.folders, volume.below.folders
    if name.folders == (whole if name.absolute else below):
        return other_suffix, _ITSELF, 0
    if not name.absolute and count <= len(whole) and whole[len(whole) - count :] == name.folders:
        return other_suffix, _TAIL, 0
    if name.absolute and not name.remote and name.folders[count - len(below) :] == below:
        return other_suffix, _FOREIGN, -len(below)
    return None


def _parse(name: str) -> _Name:
    text = unicodedata.normalize("NFC", name).removeprefix("file://")
    remote = "://" in text
    if not remote:
        text = text.replace("\\", "/")
        drive = _DRIVE.fullmatch(text)
        text = posixpath.normpath(drive[1] if drive else text)
    parts = text.split("/")
    absolute = remote or parts[0] == "" or bool(_DRIVE.fullmatch(text))
    while len(parts) > 1 and parts[0] == "..":
        del parts[0]
    return _Name(tuple(parts[:-1]), parts[-1], remote, absolute)


def _stems(listing: Listing) -> pa.ChunkedArray:
    """`_Name.stem` of each volume's URI, by column."""
    folders = r"(?s)^.*/" if "://" in listing.prefix else r"(?s)^.*[/\\]"
    files = pc.replace_substring_regex(listing.objects["volume_id"], folders, "")
    return pc.utf8_normalize(pc.replace_substring_regex(files, r"(?i)\.nii(\.gz)?$", ""), "NFC")
