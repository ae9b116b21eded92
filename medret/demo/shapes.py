"""A canvas in patient space on which soft-edged shapes are painted.

All coordinates are millimetres in RAS+: x grows towards the patient's right, y towards anterior, z towards superior.
The origin is the middle of the field of view.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WARP_REACH_MM = 45.0  # over which an outline wanders

Field = NDArray[np.floating[Any]]  # one value per voxel, (x, y, z)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[float, ...]) -> Field:
    """A random field of about unit variance, smooth over `cells` voxels along each axis."""
    knots = [max(4, round(n / cell) + 3) for n, cell in zip(shape, cells, strict=True)]
    field = rng.standard_normal(knots).astype(np.float32)
    for axis, (n, count) in enumerate(zip(shape, knots, strict=True)):
        field = np.moveaxis(np.tensordot(_cubic_spline(n, count), field, axes=(1, axis)), 0, axis)
    return np.asarray(field / (field.std() + 1e-6))


def _cubic_spline(n: int, knots: int) -> NDArray[np.float32]:
    """(n, knots) weights of the uniform cubic B-spline that stretches `knots` values over n samples."""
    at = np.linspace(1, knots - 2.001, n)
    distance = np.abs(at[:, None] - np.arange(knots)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance) ** 3 / 6
    return np.where(distance < 1, near, np.where(distance < 2, far, 0)).astype(np.float32)


class Canvas:
    """Voxel values and the patient coordinates of every voxel, as seen from inside one subject.

    Subjects differ: their size within 10 %, turned about the z axis by up to 5 degrees, a little off centre, and their
    outlines wander around the plain shapes by warp_mm.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing_mm: tuple[float, float, float],
        background: float,
        warp_mm: float,
        rng: np.random.Generator,
    ) -> None:
        self.shape = shape
        self.spacing_mm = spacing_mm
        self.rng = rng
        self.edge_mm = float(max(spacing_mm[:2]))  # softness of outlines: one voxel of partial volume
        scales = rng.uniform(0.95, 1.06) * rng.uniform(0.95, 1.05, 3)
        shifts_mm = rng.uniform(-6, 6, 3)
        turn_rad = np.radians(rng.uniform(-5, 5))
        axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm, strict=True)]
        x, y, z = (grid - shift for grid, shift in zip(np.meshgrid(*axes, indexing="ij"), shifts_mm, strict=True))
        cos, sin = np.cos(turn_rad), np.sin(turn_rad)
        turned = (cos * x + sin * y, cos * y - sin * x, z)
        wander = [self.noise(WARP_REACH_MM) * warp_mm for _ in range(3)]
        self.x, self.y, self.z = (
            (at / scale + offset).astype(np.float32) for at, scale, offset in zip(turned, scales, wander, strict=True)
        )
        self.values = np.full(shape, background, np.float32)
        self.structures: dict[str, NDArray[np.bool_]] = {}

    def noise(self, reach_mm: float) -> Field:
        """A smooth random field of about unit variance that changes over `reach_mm`."""
        cells = tuple(max(1.0, reach_mm / step) for step in self.spacing_mm)
        return smooth_noise(self.rng, self.shape, cells)

    def inside(self, depth_mm: Field) -> Field:
        """The 0..1 mask of a region given by depth below its surface: 0 outside, 1 inside, soft over one voxel."""
        return np.asarray(np.clip(depth_mm / self.edge_mm + 0.5, 0, 1))

    def ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
        """Approximate depth in mm below an ellipsoid's surface; negative outside. A radius may be infinite."""
        axes = zip((self.x, self.y, self.z), centre, radii, strict=True)
        parts = [((at - c) / r) ** 2 for at, c, r in axes if np.isfinite(r)]
        return np.asarray((1 - np.sqrt(sum(parts))) * min(radii))

    def tube(self, centre_xy: tuple[float, float], radii_xy: tuple[float, float]) -> Field:
        """Depth in mm below the surface of an elliptic tube along z."""
        return self.ellipsoid((*centre_xy, 0.0), (*radii_xy, np.inf))

    def box(self, centre: tuple[float, float, float], half: tuple[float, float, float]) -> Field:
        """Depth in mm below the surface of a box; a half width may be infinite."""
        axes = zip((self.x, self.y, self.z), centre, half, strict=True)
        return np.asarray(np.minimum.reduce([h - np.abs(at - c) for at, c, h in axes if np.isfinite(h)]))

    def paint(self, depth_mm: Field, value: float | Field, *, within: Field | None = None) -> None:
        """Paint `value` where depth is positive; `within`, a 0..1 mask, limits it further."""
        cover = self.inside(depth_mm)
        if within is not None:
            cover = cover * within
        self.values += cover * (value - self.values)

    def mark(self, structure: str, depth_mm: Field) -> None:
        """Note that the voxels at positive depth belong to a structure, and to no other that was marked before."""
        inside = np.asarray(depth_mm > 0)
        for voxels in self.structures.values():
            voxels &= ~inside
        self.structures[structure] = self.structures.get(structure, np.zeros(self.shape, bool)) | inside
