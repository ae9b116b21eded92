"""The rotation of LSH: seeded, so that it is not stored, and fast, so that building and opening an index cost nothing.

A Gaussian matrix made orthogonal takes bits x bits x bits steps to make and dim x bits numbers to store: seconds, and
megabytes in each file, whatever the number of vectors. FAISS's Hadamard rotation (three rounds of random signs and a
Walsh-Hadamard transform) needs only a seed.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray


class Rotation:
    """Turns (n, dim) vectors into (n, bits) coordinates: those of as many rotations as `bits` needs, the last cut.

    Each rotation fills `dim` up to a power of two. Rotation number i has the seed i. The same on every machine, but
    for rounding.
    """

    def __init__(self, dim: int, bits: int) -> None:
        width = 1 << (dim - 1).bit_length()
        self._rotations = [faiss.HadamardRotation(dim, seed) for seed in range(-(-bits // width))]
        self._bits = bits

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The coordinates of (n, dim) vectors."""
        turned = [rotation.apply(np.ascontiguousarray(vectors)) for rotation in self._rotations]
        cut: NDArray[np.float32] = np.ascontiguousarray(np.concatenate(turned, axis=1)[:, : self._bits])
        return cut
