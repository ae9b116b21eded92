"""Opening a published store and retrieving from it. Imports neither ray nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Encoders",
    "FileContent",
    "Hit",
    "Hits",
    "SearchOptions",
    "SliceMatch",
    "SlicePair",
    "Snapshot",
    "Snapshots",
    "Task",
    "VolumeName",
    "Words",
    "open_snapshot",
    "open_snapshots",
]

if TYPE_CHECKING:
    from medret.search.encoders import Encoders
    from medret.search.hit import Hit, Hits, SliceMatch, SlicePair
    from medret.search.index_search import Task
    from medret.search.options import SearchOptions
    from medret.search.query import FileContent, VolumeName, Words
    from medret.search.snapshot import Snapshot, Snapshots, open_snapshot, open_snapshots
else:

    def __getattr__(name: str) -> Any:
        """Import on first use: `medret search --help` reads the defaults of the options without faiss."""
        if name not in __all__:
            raise AttributeError(f"module 'medret.search' has no attribute '{name}'")
        from medret.search import encoders, hit, options, query, snapshot

        modules = (encoders, hit, options, query, snapshot)
        return next(vars(module)[name] for module in modules if name in vars(module))
