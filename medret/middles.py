"""The middles of equal parts: the rule of `uniform:N` in slice plans and aggregations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def middles(count: int, parts: int) -> NDArray[np.int64]:
    """The numbers in range(count) nearest to the middles of `parts` equal parts; parts <= count.

    Part i has its middle at (2i + 1) count / (2 parts). Between two numbers, the lower half of the parts rounds up and
    the upper half down, so that the choice is its own mirror image.
    """
    part = np.arange(parts, dtype=np.int64)
    doubled = (2 * part + 1) * count  # the middle, in units of 1 / (2 parts)
    below = doubled // (2 * parts)
    on_edge = (doubled % (2 * parts) == 0) & (part >= parts // 2)
    result: NDArray[np.int64] = below - on_edge
    return result
