"""Aggregations: turn the slice vectors of a volume into one vector.

Every aggregation is a pure function of the stored unit slice vectors and their relative positions, so it can be changed
without embedding again. The choices follow arXiv 2311.13547 (all slices, Gaussian weights over the position, a
subsample); the paper does not state the Gaussian's parameters, so they are part of the name here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.recipe import middles

FORMS = "mean, max, gaussian:CENTRE,SIGMA, uniform:N, random:N or random:N,SEED"


@dataclass(frozen=True)
class Aggregation:
    """A way to make one vector from the slice vectors of a volume.

    centre, sigma: of the Gaussian, in units of the relative slice position (0 first slice, 1 last).
    count: slices kept by `uniform` and `random`; a volume with fewer keeps them all.
    """

    kind: Literal["mean", "max", "gaussian", "uniform", "random"]
    centre: float = 0.5
    sigma: float = 0.0
    count: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """The canonical text, which `parse_aggregation` reads back."""
        match self.kind:
            case "gaussian":
                return f"gaussian:{self.centre:g},{self.sigma:g}"
            case "uniform":
                return f"uniform:{self.count}"
            case "random":
                return f"random:{self.count}" + (f",{self.seed}" if self.seed else "")
            case _:
                return self.kind

    def weights(self, relative: NDArray[np.float32], volume_id: str) -> NDArray[np.float64]:
        """Weights of the slices, (n,), summing to 1. relative: (n,) positions in [0, 1]. Not defined for `max`."""
        n = len(relative)
        if self.kind == "gaussian":
            exponent = -0.5 * ((relative.astype(np.float64) - self.centre) / self.sigma) ** 2
            weight = np.exp(exponent - exponent.max())  # the nearest slice keeps weight, however narrow the Gaussian
        else:
            weight = np.zeros(n)
            weight[self._kept(n, volume_id)] = 1.0
        normed: NDArray[np.float64] = weight / weight.sum()
        return normed

    def _kept(self, n: int, volume_id: str) -> NDArray[np.int64]:
        if self.kind == "mean" or self.count >= n:
            return np.arange(n)
        if self.kind == "uniform":  # mirrored volumes keep mirrored slices
            return middles(n, self.count)
        digest = hashlib.sha256(f"{volume_id}\0{self.seed}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return np.sort(generator.choice(n, self.count, replace=False))

    def aggregate(
        self, vectors: NDArray[np.float32], relative: NDArray[np.float32], volume_id: str
    ) -> NDArray[np.float32]:
        """Reduce unit slice vectors (n, d) to one unit vector (d,).

        Raises VolumeError (embedding_failed) if the result has no length: slice vectors may cancel.
        """
        if len(vectors) == 0:
            raise VolumeError(QuarantineCode.EMBEDDING_FAILED, "there are no slice vectors to aggregate")
        if self.kind == "max":
            pooled = vectors.max(axis=0).astype(np.float64)
        else:
            pooled = self.weights(relative, volume_id) @ vectors.astype(np.float64)
        length = float(np.linalg.norm(pooled))
        if not math.isfinite(length) or length < 1e-12:
            raise VolumeError(
                QuarantineCode.EMBEDDING_FAILED,
                f"the {self.name} of its {len(vectors)} slice vectors has length {length:g}: they cancel, so it has no "
                "direction",
            )
        unit: NDArray[np.float32] = (pooled / length).astype(np.float32)
        return unit


def parse_aggregation(text: str) -> Aggregation:
    """Parse an aggregation's name; raise UsageError, listing the forms, if it is not understood."""
    kind, _, rest = text.strip().partition(":")
    try:
        match kind:
            case "mean" | "max" if not rest:
                return Aggregation(kind)
            case "gaussian":
                centre, sigma = (float(part) for part in rest.split(","))
                if math.isfinite(centre) and math.isfinite(sigma) and sigma > 0:
                    return Aggregation("gaussian", centre=centre, sigma=sigma)
            case "uniform":
                if int(rest) > 0:
                    return Aggregation("uniform", count=int(rest))
            case "random":
                count, _, seed = rest.partition(",")
                if int(count) > 0 and int(seed or 0) >= 0:
                    return Aggregation("random", count=int(count), seed=int(seed or 0))
    except ValueError:
        pass  # raised below, with the valid forms
    raise UsageError(f"aggregation '{text}' is not understood; expected {FORMS}")
