"""The centre of an index: the part that its vectors share, subtracted before they are compared.

Medical slices look alike to a network trained on photographs: their vectors share a large part, which says "medical
slice" and, worse, "this scanner's style". An index therefore holds directions from its own mean. docs/retrieval.md
shows the gain on real volumes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medret.errors import CorruptError, first_line

CENTRE_KIND = "centre"  # in the FILES table
# The mean shrinks towards zero as if this many more volumes had the zero vector. No vector can then coincide with it,
# so an archive of one volume, or of copies of one, has directions too.
PRIOR_VOLUMES = 4
# The centre of a growing archive, and every shard built around it, is kept until the number of volumes has grown by
# this factor since the centre was fitted.
REFIT_GROWTH = 2.0


def fit_centre(sums: Iterable[NDArray[np.float64]], rows: int, volumes: int) -> NDArray[np.float32]:
    """The shrunk mean of unit vectors, (dim,) float32.

    sums: (dim,) each, the sum of some of the vectors. rows: number of vectors in all sums. volumes: number of volumes
    they come from. The result is rounded to 2^-20, so that it does not depend on how the vectors were split.
    """
    total = sum(sums, start=np.zeros(()))
    mean: NDArray[np.float64] = total / max(rows, 1)
    return (np.round(mean * (volumes / (volumes + PRIOR_VOLUMES)) * 2**20) / 2**20).astype(np.float32)


def pooled_centre(centres: Iterable[tuple[NDArray[np.float32], int]]) -> NDArray[np.float32]:
    """The centre of several indices together: (centre, number of volumes that it was fitted to) each.

    Every volume counts the same. If all volumes have equally many vectors, no number of the result differs by more than
    3 x 2^-20 from the centre that is fitted to all vectors at once: each centre was rounded to 2^-20.
    """
    parts = list(centres)
    if all(np.array_equal(parts[0][0], centre) for centre, _ in parts):
        return parts[0][0]
    sums = [centre.astype(np.float64) * (volumes + PRIOR_VOLUMES) for centre, volumes in parts]
    everything = sum(volumes for _, volumes in parts)
    return fit_centre(sums, everything, everything)


def centred(vectors: NDArray[np.floating], centre: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(n, dim) unit vectors -> float32 unit vectors, their directions from the centre; None changes nothing."""
    wide = vectors.astype(np.float32)
    if centre is None:
        return wide
    wide -= centre
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return wide


def uncentred(vectors: NDArray[np.float32], centre: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The inverse of `centred`, (n, dim) float32: centre + t * direction with t > 0 and length 1.

    It exists because the centre is shorter than any vector.
    """
    if centre is None:
        return vectors
    wide = vectors.astype(np.float64)
    along = wide @ centre
    inside = np.maximum(1 - float(centre.astype(np.float64) @ centre), 0)
    lengths = np.einsum("ij,ij->i", wide, wide)  # 1 up to float16's rounding
    t = (np.sqrt(along**2 + lengths * inside) - along) / lengths
    raw: NDArray[np.float32] = (centre + t[:, None] * wide).astype(np.float32)
    return raw


def refit_needed(volumes: int, fitted_on: int) -> bool:
    """Whether the archive has grown or shrunk too much since its centre was fitted."""
    return not fitted_on / REFIT_GROWTH < volumes < fitted_on * REFIT_GROWTH


def centre_of(data: bytes, name: str, dim: int | None = None) -> NDArray[np.float32]:
    """Read the (dim,) centre from a file's bytes, after checking its sizes; raises CorruptError naming it."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it has another version of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = len(data) - file.tell()
        if dtype != np.float32 or len(shape) != 1 or size != 4 * shape[0] or (dim is not None and shape != (dim,)):
            expected = f"({'dim' if dim is None else dim},)"
            raise ValueError(f"it declares {dtype} of shape {shape} in {size} bytes, expected float32 of {expected}")
        centre = np.frombuffer(data, np.float32, offset=file.tell())
        if not np.isfinite(centre).all():
            raise ValueError("it is not finite")
    except (ValueError, TypeError, SyntaxError, EOFError, RecursionError, MemoryError) as error:
        raise CorruptError(f"{name} is not a centre that medret writes: {first_line(error)}") from error
    return centre
