"""The run report: what a run was asked, what it did and how long each part took."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import medret
from medret.storage import Location

PACKAGES = ("ray", "torch", "timm", "transformers", "dreamsim", "faiss-gpu", "faiss-cpu", "pyarrow", "nibabel", "numpy")


def write_report(
    store: Location, run: str, started: datetime, phases_s: Mapping[str, float], facts: Mapping[str, Any]
) -> str:
    """Write runs/<run>-<sha256[:16]>.json; returns its path below the store.

    phases_s: wall seconds of each part, in order. facts: whatever else is worth knowing, as JSON values.
    """
    finished = datetime.now(UTC)
    content = {
        "run": run,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "medret": medret.__version__,
        "python": platform.python_version(),
        "packages": _versions(),
        "phases_s": dict(phases_s),
        **facts,
    }
    data = (json.dumps(content, indent=1, default=str) + "\n").encode()
    return store.write_named("runs", run, ".json", data).path


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
