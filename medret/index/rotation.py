"""Rotations of vectors: seeded, so that they are not stored, and fast, so that building and opening cost nothing.

A Gaussian matrix made orthogonal takes bits x bits x bits steps to make and dim x bits numbers to store: seconds, and
megabytes in each file, whatever the number of vectors. FAISS's Hadamard rotation (three rounds of random signs and a
Walsh-Hadamard transform) needs only a seed.
"""

from __future__ import annotations

from functools import cache

import faiss
import numpy as np
from numpy.typing import NDArray

from medret.index.neighbours import threads_for


class Rotation:
    """Turns (n, dim) vectors into (n, bits) coordinates: those of as many rotations as `bits` needs, the last cut.

    Each rotation fills `dim` up to a power of two. Rotation number i has the seed i. The same on every machine, but
    for rounding.
    """

    def __init__(self, dim: int, bits: int) -> None:
        width = 1 << (dim - 1).bit_length()
        self._rotations = [_hadamard(dim, seed) for seed in range(-(-bits // width))]
        self._bits = bits

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The coordinates of (n, dim) vectors."""
        turned = [_apply(rotation, np.ascontiguousarray(vectors)) for rotation in self._rotations]
        cut: NDArray[np.float32] = np.ascontiguousarray(np.concatenate(turned, axis=1)[:, : self._bits])
        return cut


def turned(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, dim) vectors turned by a rotation that spreads every dimension over most others; lengths and angles stay.

    A Hadamard rotation needs a power of two: where dim is none, the largest below it turns the first dimensions, then
    the last. They overlap, because it is more than half of dim.
    """
    dim = vectors.shape[1]
    width = 1 << (dim.bit_length() - 1)
    result = np.array(vectors, np.float32)
    for seed, start in enumerate([0] if width == dim else [0, dim - width]):
        part = slice(start, start + width)
        result[:, part] = _apply(_hadamard(width, seed), np.ascontiguousarray(result[:, part]))
    return result


@cache
def _hadamard(dim: int, seed: int) -> faiss.HadamardRotation:
    return faiss.HadamardRotation(dim, seed)


def _apply(rotation: faiss.HadamardRotation, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    with threads_for(len(vectors)):
        made: NDArray[np.float32] = rotation.apply(vectors)
    return made
