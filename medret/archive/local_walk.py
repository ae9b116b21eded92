"""Walk a folder on this machine's disks and mounts: everything below it, whatever lies there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from medret.archive.skip_rules import found, found_tables
from medret.errors import NotFoundError, UsageError
from medret.storage import reaching
from medret.storage.objects import Beat, with_stall_limit


def walk(root: str) -> list[pa.Table]:
    """Everything below a local folder (skip_rules.FOUND), in any order; a file `root` alone, as "".

    It follows links, walks no circle and opens no file. A link to nothing is a volume that cannot be read. fsspec would
    silently leave out linked folders, and fail on a single folder without permission. Raises NotFoundError if nothing
    is there, UsageError if it is neither folder nor file, and StorageError if a folder does not answer for minutes or
    cannot be listed for a reason other than its permissions: a broken mount must not look like an archive that shrank.
    """
    root = root or "/"
    with reaching(root, "listed"):
        try:
            return with_stall_limit(lambda beat: list(found_tables(_walk(root, beat))), root)
        except FileNotFoundError as error:
            raise NotFoundError(f"archive {root} does not exist; expected a folder of NIfTI files") from error


def _walk(root: str, beat: Beat) -> Iterator[tuple[Any, ...]]:
    status = Path(root).stat()
    if stat.S_ISREG(status.st_mode):
        yield _file("", status)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"archive {root} is neither a folder nor a file")
    # Each folder with its real path and those of the folders above it: a link back to one of them is not followed.
    folders: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while folders:
        below, chain = folders.pop()
        try:
            with os.scandir(f"{root}/{below}") as scanned:
                names = [entry.name for entry in scanned]
        except FileNotFoundError:  # removed since its parent was listed
            continue
        except OSError as error:
            if not below or not (isinstance(error, PermissionError) or _is_hidden(below)):
                raise
            yield found(below.rstrip("/"), {}, "no_access")
            continue
        for name in names:
            path = below + name
            try:
                status = Path(root, path).stat()
            except OSError:  # a link to nothing, to itself or to a forbidden place: reported when it is read
                yield found(path, {})
                continue
            if stat.S_ISDIR(status.st_mode):
                real = os.path.realpath(f"{root}/{path}")
                if real not in chain:
                    folders.append((f"{path}/", (*chain, real)))
            else:
                yield _file(path, status)
            beat()


def _file(path: str, status: os.stat_result) -> tuple[Any, ...]:
    rule = None if stat.S_ISREG(status.st_mode) else "not_a_file"
    return found(path, {"size": status.st_size, "mtime": status.st_mtime}, rule)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
