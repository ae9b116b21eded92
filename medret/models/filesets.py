"""Files that may hold weights, wherever they lie: a file, a folder, an fsspec URI, or a zip of any of these.

Nothing is unpacked under a name that came with an archive: a member is read into memory and later written under
its role.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from medret.errors import UsageError, WeightsError
from medret.models.spec import WeightPart
from medret.storage import normalise_uri, open_filesystem, reaching, redacted, scheme_of, tree

# A path on this machine, or a function that gives the bytes.
Entry = Path | Callable[[], bytes]

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
MAX_MEMBER_BYTES = 8 << 30
MAX_FILES_LISTED = 10_000  # a folder with more is not a folder of weights


@dataclass(frozen=True)
class FileSet:
    """Files by name (path below the place they were found in, with forward slashes). label: the place."""

    label: str
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def __or__(self, other: FileSet) -> FileSet:
        """Both sets; where a name is in both, this one's file."""
        return FileSet(self.label, {**other.entries, **self.entries})


def open_files(given: str, *, archive: bool = False) -> FileSet:
    """The files behind a path or URI. archive: a single file is a zip, and its members are meant.

    Raises WeightsError when there is nothing there or it is not understood, StorageError when it cannot be read.
    """
    try:
        uri = normalise_uri(given)
        if not scheme_of(uri):
            return _local_files(Path(uri), given, archive)
        with reaching(uri, "read"):
            fs, root = open_filesystem(uri)
            if fs.isfile(root):
                files = FileSet(given, {root.rsplit("/", 1)[-1]: partial(fs.cat_file, root)})
                return _members(given, io.BytesIO(fs.cat_file(root))) if archive else files
            paths = tree(fs, root)
    except UsageError as error:
        raise WeightsError(str(error)) from error
    except FileNotFoundError:
        paths = {}
    if not paths:
        raise WeightsError(f"weights {redacted(given)}: no such file or folder")
    below = len(root.rstrip("/")) + 1
    entries: dict[str, Entry] = {path[below:]: partial(fs.cat_file, path) for path in paths}
    return FileSet(given, entries)


def _local_files(root: Path, given: str, archive: bool) -> FileSet:
    if root.is_file():
        return _members(given, root) if archive else FileSet(str(root), {root.name: root})
    if not root.is_dir():
        raise WeightsError(f"weights {given}: no such file or folder")
    entries: dict[str, Entry] = {}
    for seen, path in enumerate(root.rglob("*")):
        if path.is_file():
            entries[path.relative_to(root).as_posix()] = path
        if seen > MAX_FILES_LISTED:
            raise WeightsError(f"weights {given}: more than {MAX_FILES_LISTED} files, expected a model's folder")
    return FileSet(str(root), dict(sorted(entries.items())))


def _members(given: str, file: Path | io.BytesIO) -> FileSet:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except zipfile.BadZipFile as error:
        raise WeightsError(f"weights {given}: {error}; expected a folder or a zip of the published files") from error
    entries: dict[str, Entry] = {info.filename: partial(_read_member, given, file, info) for info in members}
    return FileSet(given, entries)


def _read_member(given: str, file: Path | io.BytesIO, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_MEMBER_BYTES:
        raise WeightsError(f"weights {given}: {info.filename} says it has {info.file_size} bytes, too many for weights")
    try:
        with zipfile.ZipFile(file) as archive, archive.open(info) as member:
            data = member.read(info.file_size + 1)  # a member that lies about its size ends here
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise WeightsError(f"weights {given}: {info.filename} cannot be read from the zip: {error}") from error
    if len(data) != info.file_size:
        raise WeightsError(f"weights {given}: {info.filename} is not as long as the zip says")
    return data


def select(parts: Sequence[WeightPart], files: FileSet) -> tuple[dict[str, Entry], list[WeightPart]]:
    """The file for each part's role, and the parts that have none.

    Raises WeightsError when a part takes any checkpoint and there are several.
    """
    found: dict[str, Entry] = {}
    missing: list[WeightPart] = []
    for part in parts:
        name = _match(part, files)
        if name is None:
            missing.append(part)
        else:
            found[part.role] = files.entries[name]
    return found, missing


def _match(part: WeightPart, files: FileSet) -> str | None:
    for wanted in part.names:
        fits = [name for name in files.entries if name == wanted or name.endswith("/" + wanted)]
        if fits:
            return min(fits, key=lambda name: (name.count("/"), name))
    if part.names:
        return None
    if len(files.entries) == 1:
        return next(iter(files.entries))
    candidates = [name for name in files.entries if name.endswith(CHECKPOINT_SUFFIXES)]
    if "model.safetensors" in candidates:
        return "model.safetensors"
    if len(candidates) > 1:
        raise WeightsError(
            f"weights {files.label}: several files could be meant ({', '.join(sorted(candidates)[:6])}): name one"
        )
    return candidates[0] if candidates else None
