"""FAISS's parameters of one search."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

_faiss: Any = faiss  # its type stubs lack these classes and arguments


def all_but(excluded: NDArray[np.int64] | None) -> Any:
    """The selector of every row but `excluded`; None when nothing is excluded."""
    if excluded is None or not len(excluded):
        return None
    return _faiss.IDSelectorNot(_faiss.IDSelectorBatch(np.ascontiguousarray(excluded, dtype=np.int64)))


def scan_parameters(excluded: NDArray[np.int64] | None) -> Any:
    """Of an exhaustive search."""
    return _faiss.SearchParameters(sel=all_but(excluded))


def hnsw_parameters(ef_search: int, excluded: NDArray[np.int64] | None) -> Any:
    """Of a search in an HNSW graph."""
    return _faiss.SearchParametersHNSW(sel=all_but(excluded), efSearch=ef_search)
