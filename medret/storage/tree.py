"""All files below a place, in one listing where the store has one, else folder by folder; a failure is never silent.

fsspec's own walk passes over every folder that could not be listed: an archive would look as if it had shrunk.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from medret.retry import with_retries

Details = dict[str, dict[str, Any]]


def tree(fs: Any, root: str) -> Details:
    """What the filesystem says of each file, by its own path; of `root` itself where that is a file.

    Raises FileNotFoundError where nothing is, or what the filesystem's library raises.
    """
    fs.invalidate_cache()
    if not _walks(fs):
        found: Details = with_retries(lambda: fs.find(root, detail=True))
        return found
    found, folders = {}, [root]
    while folders:
        folder = folders.pop()
        try:
            listing = with_retries(partial(fs.ls, folder, detail=True))
        except FileNotFoundError:
            if folder == root:
                raise
            continue  # removed meanwhile
        for detail in listing:
            name = detail["name"].rstrip("/")
            if detail["type"] != "directory":
                found[name] = detail
            elif name != folder:
                folders.append(name)
    if not found and (detail := with_retries(lambda: fs.info(root)))["type"] == "file":
        return {root: detail}
    return found


def _walks(fs: Any) -> bool:
    """Whether its `find` is fsspec's walk, and not a listing of its own."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    if fs.async_impl:
        return type(fs)._find is AsyncFileSystem._find  # noqa: SLF001
    return type(fs).find is AbstractFileSystem.find
