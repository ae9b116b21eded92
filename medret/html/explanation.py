"""The page of an explanation: a matrix of slice against slice, and the pairs of slices that gave most to the score."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.html import render
from medret.html.cards import Tile, VolumeImages

CELL_MOST, SIDE = 16, 640  # px
DARK, BRIGHT = np.array([18, 22, 28.0]), np.array([90, 180, 240.0])
MARK = (245, 164, 66)  # of a pair that gave to the score


@dataclass(frozen=True)
class PairCard:
    """A pair of slices as the page shows it. query, hit: its pictures, None where there is none."""

    words: str
    cosine: float
    share: float
    query: Tile | None
    hit: Tile | None


@dataclass(frozen=True)
class MatrixImage:
    """A matrix as an image. source: data URI. width, height: px."""

    source: str
    width: int
    height: int
    low: float
    high: float


def matrix_image(cosines: NDArray[np.float32], marked: NDArray[np.bool_]) -> MatrixImage:
    """Shade each cell from the least to the greatest cosine, and mark some. Rows run down, columns to the right."""
    rows, columns = cosines.shape
    cell = max(1, min(CELL_MOST, SIDE // max(rows, columns)))
    low, high = float(cosines.min()), float(cosines.max())
    shade = (cosines - low) / (high - low) if high > low else np.ones_like(cosines)
    pixels = (DARK + shade[..., None] * (BRIGHT - DARK)).astype(np.uint8)
    large = pixels.repeat(cell, axis=0).repeat(cell, axis=1)
    inset = max(0, cell // 4)
    for row, column in np.argwhere(marked):
        top, left = row * cell + inset, column * cell + inset
        large[top : (row + 1) * cell - inset, left : (column + 1) * cell - inset] = MARK
    buffer = io.BytesIO()
    Image.fromarray(large).save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return MatrixImage(source, large.shape[1], large.shape[0], low, high)


def tile_of(images: VolumeImages | str | None, plane: str | None, index: int) -> Tile | None:
    """The picture of a slice, if there is one."""
    return images.by_slice.get((plane or "", index)) if isinstance(images, VolumeImages) else None


def render_explanation(title: str, pairs: Sequence[PairCard], matrix: MatrixImage, **values: object) -> str:
    """Render the page. values: what else `explanation.html.j2` names."""
    return render("explanation.html.j2", title=title, pairs=pairs, matrix=matrix, **values)
