"""Size of an index as a file, for studies."""

from __future__ import annotations

from typing import Any

import faiss


def size_bytes(index: Any) -> int:
    """Bytes that a FAISS index takes on disk."""
    writer = faiss.VectorIOWriter()
    faiss.write_index(index, writer)
    return int(writer.data.size())


def threads() -> int:
    """Threads that FAISS builds and searches with."""
    return int(faiss.omp_get_max_threads())
