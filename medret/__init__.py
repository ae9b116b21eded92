"""medret: content-based retrieval of 3D medical images at archive scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medret.search import Hit, Snapshot, open_snapshot

__version__ = "0.1.0"
__all__ = ["Hit", "Snapshot", "__version__", "open_snapshot"]


def __getattr__(name: str) -> Any:  # imports faiss and pyarrow on first use, never ray or torch
    if name in __all__:
        from medret import search

        return getattr(search, name)
    raise AttributeError(f"module 'medret' has no attribute '{name}'")
