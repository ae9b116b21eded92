"""medret: content-based retrieval of 3D medical images at archive scale.

What `__all__` names is public; everything else may change without notice. Importing medret loads neither faiss, torch
nor ray: each is loaded when a function first needs it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from medret._version import __version__
from medret.errors import (
    BusyError,
    CorruptError,
    DroppedError,
    GateError,
    MedretError,
    MissingPackageError,
    NotFoundError,
    StoppedError,
    StorageError,
    UnreachableError,
    UsageError,
    VersionError,
    VolumeError,
    WeightsError,
    needs_extra,
)

if TYPE_CHECKING:
    from medret.api import evaluate_masks, evaluate_snapshot, index_archive, plan_index
    from medret.evaluate import Evaluation
    from medret.evaluate.structure_figures import StructureEvaluation
    from medret.pipeline.dry_run import IndexPlan
    from medret.pipeline.result import IndexOutcome
    from medret.search import (
        Hit,
        Hits,
        SearchOptions,
        SliceMatch,
        SlicePair,
        Snapshot,
        Snapshots,
        Task,
        Words,
        open_snapshot,
        open_snapshots,
    )
    from medret.volume.previews import Preview

__all__ = [
    "BusyError",
    "CorruptError",
    "DroppedError",
    "Evaluation",
    "GateError",
    "Hit",
    "Hits",
    "IndexOutcome",
    "IndexPlan",
    "MedretError",
    "MissingPackageError",
    "NotFoundError",
    "Preview",
    "SearchOptions",
    "SliceMatch",
    "SlicePair",
    "Snapshot",
    "Snapshots",
    "StoppedError",
    "StorageError",
    "StructureEvaluation",
    "Task",
    "UnreachableError",
    "UsageError",
    "VersionError",
    "VolumeError",
    "WeightsError",
    "Words",
    "__version__",
    "evaluate_masks",
    "evaluate_snapshot",
    "index_archive",
    "open_snapshot",
    "open_snapshots",
    "plan_index",
]

_LAZY = {  # the public names that are not loaded with medret, by module
    "medret.api": ("evaluate_masks", "evaluate_snapshot", "index_archive", "plan_index"),
    "medret.evaluate": ("Evaluation",),
    "medret.evaluate.structure_figures": ("StructureEvaluation",),
    "medret.pipeline.dry_run": ("IndexPlan",),
    "medret.pipeline.result": ("IndexOutcome",),
    "medret.search": (
        "Hit",
        "Hits",
        "SearchOptions",
        "SliceMatch",
        "SlicePair",
        "Snapshot",
        "Snapshots",
        "Task",
        "Words",
        "open_snapshot",
        "open_snapshots",
    ),
    "medret.volume.previews": ("Preview",),
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library is silent unless its user listens


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            with needs_extra():
                return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'medret' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
