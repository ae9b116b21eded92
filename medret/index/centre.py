"""The centre of an index: what all of its vectors have in common, taken away before they are compared.

Slices of medical volumes look alike to a network trained on photographs: their vectors share a large part, which says
"medical slice" and, worse, "this scanner's style". An index therefore holds the directions from its own mean. What
this is worth on real volumes stands in docs/retrieval.md.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medret.errors import CorruptError, first_line

CENTRE_KIND = "centre"  # in the FILES table
# The mean is drawn towards zero as if so many volumes had the zero vector: no vector can coincide with it, so that an
# archive of one volume, or of copies of one, has directions too.
PRIOR_VOLUMES = 4
# The centre of an archive that grows is kept, with every shard built around it, until it holds so many times the
# volumes that the centre was fitted on.
REFIT_GROWTH = 2.0


def fit_centre(sums: Iterable[NDArray[np.float64]], rows: int, volumes: int) -> NDArray[np.float32]:
    """The shrunk mean of unit vectors, (dim,) float32.

    sums: of the vectors of each part, (dim,). rows: how many vectors they are of; volumes: of how many volumes. Rounded
    to 2^-20, so that the parts and their order do not show in the result.
    """
    total = sum(sums, start=np.zeros(()))
    mean: NDArray[np.float64] = total / max(rows, 1)
    return (np.round(mean * (volumes / (volumes + PRIOR_VOLUMES)) * 2**20) / 2**20).astype(np.float32)


def centred(vectors: NDArray[np.floating], centre: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(n, dim) unit vectors -> the unit vectors of their directions from the centre, float32; None changes nothing."""
    wide = vectors.astype(np.float32)
    if centre is None:
        return wide
    wide -= centre
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return wide


def uncentred(vectors: NDArray[np.float32], centre: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The inverse of `centred`, which exists because the centre is shorter than any vector: (n, dim) float32.

    Of centre + t * direction, the one with t > 0 that has length 1.
    """
    if centre is None:
        return vectors
    wide = vectors.astype(np.float64)
    along = wide @ centre
    inside = np.maximum(1 - float(centre.astype(np.float64) @ centre), 0)
    lengths = np.einsum("ij,ij->i", wide, wide)  # 1, but for float16
    t = (np.sqrt(along**2 + lengths * inside) - along) / lengths
    raw: NDArray[np.float32] = (centre + t[:, None] * wide).astype(np.float32)
    return raw


def refit_needed(volumes: int, fitted_on: int) -> bool:
    """Whether an archive has grown, or shrunk, too far from what its centre was fitted on."""
    return not fitted_on / REFIT_GROWTH < volumes < fitted_on * REFIT_GROWTH


def centre_of(data: bytes, name: str, dim: int | None = None) -> NDArray[np.float32]:
    """The (dim,) centre in a file's bytes, the sizes that it names judged first; raises CorruptError naming it."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is of another version of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        held = len(data) - file.tell()
        if dtype != np.float32 or len(shape) != 1 or held != 4 * shape[0] or (dim is not None and shape != (dim,)):
            wanted = f"({'dim' if dim is None else dim},)"
            raise ValueError(f"it names {dtype} of shape {shape} in {held} bytes, expected float32 of {wanted}")
        centre = np.frombuffer(data, np.float32, offset=file.tell())
        if not np.isfinite(centre).all():
            raise ValueError("it is not finite")
    except (ValueError, TypeError, SyntaxError, EOFError, RecursionError, MemoryError) as error:
        raise CorruptError(f"{name} is not a centre that medret writes: {first_line(error)}") from error
    return centre
