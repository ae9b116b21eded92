"""Slice plans: which slices along an axis to use.

    all         every slice
    every:N     every N-th slice, centred
    uniform:N   the middles of N equal parts
    random:N    N distinct slices, drawn at random from a seed, the volume's id and the plane

`every` and `uniform` are symmetric: a volume stored in reverse gives the same slices.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.recipe import middles

Kind = Literal["all", "every", "uniform", "random"]

_FORM = re.compile(r"(every|uniform|random):([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class SlicePlan:
    """A parsed slice plan. count: N; None for `all`."""

    kind: Kind
    count: int | None = None

    def indices(self, n_slices: int, key: str = "", seed: int = 0) -> NDArray[np.int64]:
        """Ascending slice indices from `range(n_slices)`; all of them if the plan asks for more.

        key: the volume's id and the plane, on which `random` depends besides the seed.
        """
        everything = np.arange(n_slices, dtype=np.int64)
        if self.count is None:
            return everything
        if self.kind == "every":
            first = ((n_slices - 1) % self.count) // 2 if n_slices else 0
            return everything[first :: self.count]
        if self.count >= n_slices:
            return everything
        if self.kind == "uniform":
            return middles(n_slices, self.count)
        return _draw(n_slices, self.count, key, seed)


def parse_slice_plan(text: str) -> SlicePlan:
    """Read `all`, `every:N`, `uniform:N` or `random:N` (N from 1 to 999999); raises UsageError for anything else."""
    if text == "all":
        return SlicePlan("all")
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"slice plan {text!r} is not one of all, every:N, uniform:N, random:N with N from 1 to 999999")
    return SlicePlan(cast("Kind", match[1]), int(match[2]))


def _draw(n_slices: int, count: int, key: str, seed: int) -> NDArray[np.int64]:
    """The `count` slices with the smallest hashes: equal on every machine and with every version of numpy."""
    stem = f"{seed}\0{key}\0".encode()
    ranks = [hashlib.sha256(stem + str(number).encode()).digest() for number in range(n_slices)]
    chosen = sorted(range(n_slices), key=ranks.__getitem__)[:count]
    return np.array(sorted(chosen), dtype=np.int64)
