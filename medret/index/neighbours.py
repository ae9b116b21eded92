"""The result of searching one index, the interface of an index, and FAISS's parameters for one search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

# An index is asked for this many rows beyond k, so that rows with equal scores at the cut are ordered by id.
TIE_MARGIN = 8
MISSING = -1


@dataclass(frozen=True)
class Neighbours:
    """Rows found for each query, best first.

    scores: (q, m) float32 inner products of unit vectors (cosines), -inf where nothing was found.
    rows: (q, m) int64 rows of the shard, `MISSING` where nothing was found.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


class Searchable(Protocol):
    """One opened index of one shard."""

    @property
    def rows(self) -> int:
        """How many vectors it holds."""
        ...

    def search(self, queries: NDArray[np.float32], k: int, excluded: NDArray[np.int64] | None = None) -> Neighbours:
        """The best min(k, rows) rows for each of (q, dim) unit queries, without the rows in `excluded`."""
        ...


def no_neighbours(queries: int) -> Neighbours:
    """The result of a search for no rows: (queries, 0)."""
    return Neighbours(np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64))


def best_first(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Neighbours:
    """The k best of each query's (q, m) candidates by score, then by row; missing rows go last."""
    if rows.size and rows.min() < 0:
        scores = np.where(rows == MISSING, np.float32(-np.inf), scores)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    queries = np.arange(len(rows))[:, None]
    return Neighbours(scores[queries, order], rows[queries, order])


_faiss: Any = faiss  # its type stubs lack these classes and arguments


def all_but(excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """FAISS selector (bitmap) for all rows except `excluded`; None if nothing is excluded."""
    if excluded is None or not len(excluded):
        return None
    return _faiss.IDSelectorBitmap(np.packbits(~mask_of_rows(excluded, rows), bitorder="little"))


def mask_of_rows(chosen: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """(rows,) whether each row is one of `chosen`."""
    mask = np.zeros(rows, np.bool_)
    mask[chosen] = True
    return mask


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit what this thread asks of FAISS to one thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def threads_for(vectors: int) -> AbstractContextManager[None]:
    """FAISS's threads while it works on so many vectors. It spreads vectors over them, so one needs one.

    It would wait for the others, which have nothing to do; on a busy machine that takes 20 to 80 ms.
    """
    return one_thread() if vectors == 1 else nullcontext()


def scan_parameters(excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """FAISS's parameters for an exhaustive search."""
    return _faiss.SearchParameters(sel=all_but(excluded, rows))


def hnsw_parameters(ef_search: int, excluded: NDArray[np.int64] | None, rows: int) -> Any:
    """FAISS's parameters for a search in an HNSW graph."""
    return _faiss.SearchParametersHNSW(sel=all_but(excluded, rows), efSearch=ef_search)
