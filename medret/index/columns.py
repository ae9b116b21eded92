"""Arrow columns to and from numpy by their buffers.

pyarrow's own to_numpy, array and compute functions import pandas where that is installed, which takes longer than a
search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def int32_view(column: pa.Int32Array) -> NDArray[np.int32]:
    """The values of a column without nulls, not copied."""
    values = np.frombuffer(column.buffers()[1], np.int32)
    return values[column.offset : column.offset + len(column)]


def index_array(rows: NDArray[np.int64] | Sequence[int]) -> pa.Int64Array:
    """Row numbers as Arrow's `take` wants them."""
    wanted = np.ascontiguousarray(rows, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(wanted), [None, pa.py_buffer(wanted)])
