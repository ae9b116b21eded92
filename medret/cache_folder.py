"""The cache folder of this machine, which holds copies of model weights and of a remote store's files."""

from __future__ import annotations

import os
from pathlib import Path

from medret.errors import UsageError

CACHE_VARIABLE = "MEDRET_CACHE"


def default_cache_dir() -> Path:
    """`$MEDRET_CACHE`, or `~/.cache/medret`; raises UsageError when there is no home folder either."""
    configured = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(configured).expanduser() if configured else Path.home() / ".cache" / "medret"
    except RuntimeError as error:
        raise UsageError(
            f"there is no home folder for a cache: set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
