"""FAISS's parameters of one search."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

_faiss: Any = faiss  # its type stubs lack these classes and arguments


def all_but(excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """The selector of every one of `rows` but `excluded`, one bit a row; None when nothing is excluded."""
    if excluded is None or not len(excluded):
        return None
    return _faiss.IDSelectorBitmap(np.packbits(~mask_of_rows(excluded, rows), bitorder="little"))


def mask_of_rows(chosen: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """(rows,) whether each row is among those chosen."""
    mask = np.zeros(rows, np.bool_)
    mask[chosen] = True
    return mask


def scan_parameters(excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """Of an exhaustive search."""
    return _faiss.SearchParameters(sel=all_but(excluded, rows))


def hnsw_parameters(ef_search: int, excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """Of a search in an HNSW graph."""
    return _faiss.SearchParametersHNSW(sel=all_but(excluded, rows), efSearch=ef_search)
