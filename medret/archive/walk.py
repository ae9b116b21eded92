"""Everything below a folder of this machine, whatever lies there: links followed, nothing opened, no circle walked.

fsspec would leave linked folders out without a word, and fail on a single folder that may not be entered.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medret.errors import NotFoundError, UsageError
from medret.storage import reaching
from medret.storage.local import Beat, patiently


@dataclass(frozen=True)
class Entry:
    """What a listing says of an object. detail: as fsspec names it. rule: why it can be no volume, if that shows."""

    detail: Mapping[str, Any]
    rule: str | None = None


def walk(root: str) -> dict[str, Entry]:
    """Everything below `root`, by path; by "" where it is itself a file; nothing where it is an empty folder.

    Raises NotFoundError where nothing is, UsageError where it is neither folder nor file, and StorageError where it, or
    a folder below it, cannot be listed for another reason than its permissions, or gives no answer for minutes: a
    broken mount must not look like an archive that shrank.
    """
    root = root or "/"
    with reaching(root, "listed"):
        try:
            return patiently(lambda beat: _walk(root, beat), root)
        except FileNotFoundError as error:
            raise NotFoundError(f"archive {root} does not exist; expected a folder of NIfTI files") from error


def _walk(root: str, beat: Beat) -> dict[str, Entry]:
    status = Path(root).stat()
    if stat.S_ISREG(status.st_mode):
        return {"": _file(status)}
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"archive {root} is neither a folder nor a file")
    found: dict[str, Entry] = {}
    # Each folder with the real paths of itself and of those it was reached through: a link back to one ends there.
    folders: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while folders:
        below, chain = folders.pop()
        try:
            with os.scandir(f"{root}/{below}") as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            if not below or not (isinstance(error, PermissionError) or _is_hidden(below)):
                raise
            found[below.rstrip("/")] = Entry({}, "no_access")
            continue
        for name in names:
            path = below + name
            try:
                status = Path(root, path).stat()
            except OSError:  # a link to nothing, to itself, to where one may not go: said when it is read
                found[path] = Entry({})
                continue
            if stat.S_ISDIR(status.st_mode):
                real = os.path.realpath(f"{root}/{path}")
                if real not in chain:
                    folders.append((f"{path}/", (*chain, real)))
            else:
                found[path] = _file(status)
            beat()
    return found


def _file(status: os.stat_result) -> Entry:
    rule = None if stat.S_ISREG(status.st_mode) else "not_a_file"
    return Entry({"size": status.st_size, "mtime": status.st_mtime}, rule)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
