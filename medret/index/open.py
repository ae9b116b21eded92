"""Open index files read-only and memory-mapped.

The caller has checked their sha256 and, since whoever made a store chose that too, had them judged
(medret.index.judge): FAISS trusts what it reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.errors import CorruptError
from medret.index.distinct import Distinct
from medret.index.exact import ExactIndex
from medret.index.hnsw import HnswIndex
from medret.index.judge import judge_bytes
from medret.index.lsh import LshIndex
from medret.index.neighbours import Searchable
from medret.index.settings import EXACT, HNSW, LSH, IndexSettings

_CLASSES = {HNSW: faiss.IndexHNSWSQ, LSH: faiss.IndexLSH, EXACT: faiss.IndexScalarQuantizer}


def open_exact(path: Path, *, rows: int, dim: int, use_gpu: bool = False) -> ExactIndex:
    """Map an exact index of `rows` x `dim`; raises CorruptError when the file is something else."""
    return ExactIndex(_read(path, EXACT, rows, dim), use_gpu=use_gpu)


def open_approximate(
    path: Path, kind: str, exact: ExactIndex, distinct: Distinct, settings: IndexSettings
) -> Searchable:
    """Map an HNSW or LSH index over the distinct vectors of `exact`; raises CorruptError when the file is another."""
    index = _read(path, kind, len(distinct.rows), exact.dim)
    if kind == HNSW:
        return HnswIndex(index, exact, distinct, settings.hnsw_ef_search)
    return LshIndex(index, exact, distinct, settings.lsh_candidates)


def exact_vectors(data: bytes) -> NDArray[np.float16]:
    """All vectors of an exact index, (n, dim), from its file's bytes; raises CorruptError when it is something else."""
    judge_bytes(data, EXACT)
    index: Any = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    return ExactIndex(index).vectors(slice(0, index.ntotal)).copy()


def _read(path: Path, kind: str, rows: int, dim: int) -> Any:
    try:
        # Maps the codes and links of all three kinds; the rotation matrix of LSH alone is read into memory.
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise CorruptError(f"{path} cannot be read as a FAISS index: {str(error).splitlines()[0]}") from error
    if not isinstance(index, _CLASSES[kind]) or (index.ntotal, index.d) != (rows, dim):
        raise CorruptError(
            f"{path} is a {type(index).__name__} of {index.ntotal} x {index.d}, expected {kind} of {rows} x {dim}"
        )
    return index
