"""The slices of a volume, or of several: their vectors, where in the volume each lies, and how they become one vector.

Every aggregation is a pure function of the stored unit slice vectors and their relative positions, so it can be changed
without embedding again. The choices follow arXiv 2311.13547 (all slices, Gaussian weights over the position, a
subsample); the paper does not state the Gaussian's parameters, so they are part of the name here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medret.errors import QuarantineCode, UsageError, VolumeError
from medret.recipe import PLANES, middles

_PER_SLICE = ("vectors", "planes", "slice_indices", "relative_position", "position_mm", "norms", "sources", "weights")
UNKNOWN = -1  # plane of a slice whose vector came without one
FORMS = "mean, max, gaussian:CENTRE,SIGMA, uniform:N, random:N or random:N,SEED"


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of one volume, or of several, one volume after another. What is not known is None.

    vectors: (n, dim), unit length: float16 as stored, float32 or float64 where they are compared.
    planes: (n,) int8 index in PLANES, or UNKNOWN.
    slice_indices: (n,) int32 or int64 voxel index along the plane's axis, RAS+ order, ascending in each plane of a
    volume; None for a vector that stands for a whole volume.
    relative_position: (n,) float32, 0 for the first slice of the volume, 1 for the last.
    position_mm: (n,) float32 scanner coordinate along the plane's axis.
    norms: (n,) float32 lengths of the vectors before they were normalised.
    sources: (n,) what each slice was made from, str or None: see `medret.volume.SliceRef`.
    weights: (n,) float64; None: all slices weigh the same.
    starts: (volumes,) int64 first slice of each volume, strictly ascending from 0; None: the slices are of one volume.
    volume_id: of that one volume.
    """

    vectors: NDArray[np.floating[Any]]
    planes: NDArray[np.int8]
    slice_indices: NDArray[np.integer[Any]] | None = None
    relative_position: NDArray[np.float32] | None = None
    position_mm: NDArray[np.float32] | None = None
    norms: NDArray[np.float32] | None = None
    sources: NDArray[np.object_] | None = None
    weights: NDArray[np.float64] | None = None
    starts: NDArray[np.int64] | None = None
    volume_id: str = ""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def firsts(self) -> NDArray[np.int64]:
        """(volumes,) the first slice of each volume."""
        return np.zeros(min(len(self), 1), np.int64) if self.starts is None else self.starts

    @property
    def owners(self) -> NDArray[np.int64]:
        """(n,) the number of the volume that each slice belongs to."""
        return np.repeat(np.arange(len(self.firsts)), np.diff(self.firsts, append=len(self)))

    @property
    def plane_names(self) -> list[str | None]:
        """The name of each slice's plane; None where it is not known."""
        return [None if code == UNKNOWN else PLANES[code] for code in self.planes.tolist()]

    def take(self, rows: NDArray[np.integer[Any]] | NDArray[np.bool_] | slice) -> Slices:
        """Some slices, as those of one volume. rows: their numbers, or a mask."""
        arrays = {name: getattr(self, name) for name in _PER_SLICE}
        taken: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return replace(self, **taken, starts=None)

    def of_volumes(self, chosen: NDArray[np.bool_]) -> Slices:
        """The slices of some volumes. chosen: (volumes,)."""
        lengths = np.diff(self.firsts, append=len(self))[chosen]
        return replace(self.take(chosen[self.owners]), starts=np.cumsum(lengths) - lengths)


def joined(volumes: Sequence[Slices]) -> Slices:
    """The vectors, planes and weights of several volumes as one; weights sum to 1 in each volume without any."""
    lengths = np.array([len(slices) for slices in volumes])
    return Slices(
        np.concatenate([slices.vectors for slices in volumes]),
        np.concatenate([slices.planes for slices in volumes]),
        weights=np.concatenate([slice_weights(slices) for slices in volumes]),
        starts=np.cumsum(lengths) - lengths,
    )


def slice_weights(slices: Slices) -> NDArray[np.float64]:
    """(n,) the weights of the slices of one volume, summing to 1."""
    return np.full(len(slices), 1 / max(1, len(slices))) if slices.weights is None else slices.weights


def plane_codes(planes: Sequence[str | None]) -> NDArray[np.int8]:
    """Convert names of planes to their indices in PLANES; UNKNOWN for None."""
    codes: dict[str | None, int] = {name: code for code, name in enumerate(PLANES)}
    return np.array([codes.get(plane, UNKNOWN) for plane in planes], np.int8)


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


def unit_slices(raw: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Normalise model outputs (n, d) to unit float16 vectors (n, d); also return their lengths (n,).

    Raises VolumeError (embedding_failed) if an output is not finite or has no length.
    """
    norms = np.linalg.norm(raw.astype(np.float64), axis=1)
    bad = ~np.isfinite(norms) | (norms < 1e-12)
    if bad.any():
        raise VolumeError(
            QuarantineCode.EMBEDDING_FAILED,
            f"{int(bad.sum())} of {len(raw)} slice vectors are zero or not finite; try --precision fp32",
        )
    return (raw / norms[:, None]).astype(np.float16), norms.astype(np.float32)


def volume_vector(volume: Slices, aggregation: Aggregation) -> NDArray[np.float32]:
    """Aggregate the slices of one volume to its (dim,) unit vector; raise VolumeError if it has none."""
    assert volume.relative_position is not None
    return aggregation.aggregate(volume.vectors.astype(np.float32), volume.relative_position, volume.volume_id)


def reducible(
    volumes: Sequence[Slices], aggregations: Sequence[Aggregation]
) -> tuple[list[Slices], dict[str, VolumeError]]:
    """Return the volumes that every aggregation can reduce to a vector, and the errors of the others by id."""
    reduced, errors = [], {}
    for volume in volumes:
        try:
            for aggregation in aggregations:
                volume_vector(volume, aggregation)
        except VolumeError as error:
            errors[volume.volume_id] = error
        else:
            reduced.append(volume)
    return reduced, errors
