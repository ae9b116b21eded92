from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from medret.schemas import ROWS

MakeVectors = Callable[..., NDArray[np.float16]]
MakeRows = Callable[..., pa.Table]


@pytest.fixture
def synthetic_vectors() -> MakeVectors:
    """Clustered float16 unit vectors with a strong common mean, as embeddings have."""

    def make(n: int, dim: int, *, seed: int = 0, clusters: int = 40) -> NDArray[np.float16]:
        rng = np.random.default_rng(seed)
        centres = rng.standard_normal((clusters, dim)) + 3.0 * rng.standard_normal(dim)
        vectors = centres[rng.integers(0, clusters, n)] + 0.7 * rng.standard_normal((n, dim))
        unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        return unit

    return make


@pytest.fixture
def volume_rows() -> MakeRows:
    """A row table of n volume vectors, `<prefix>00000` and on."""

    def make(n: int, prefix: str = "synthetic/") -> pa.Table:
        ids = pa.array([f"{prefix}{row:05d}" for row in range(n)], pa.string())
        return pa.table([ids, pa.nulls(n, pa.string()), pa.nulls(n, pa.int32())], schema=ROWS)

    return make
