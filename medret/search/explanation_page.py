"""The page of an explanation: a matrix of slice against slice, and the pairs of slices that gave most to the score."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medret.embeddings import Slices
from medret.html import render
from medret.html.cards import IMAGE_SIZE, ImageRequest, Tile, VolumeImages
from medret.search.explain import Explanation
from medret.search.query import Query
from medret.search.snapshot import Snapshots
from medret.storage import redacted

PAIRS_SHOWN = 12
CELL_MOST, SIDE = 16, 640  # px
DARK, BRIGHT = np.array([18, 22, 28.0]), np.array([90, 180, 240.0])
MARK = (245, 164, 66)  # of a pair that gave to the score


def explanation_page(snapshots: Snapshots, explanation: Explanation, query: Query, model: str | None = None) -> str:
    """An explanation as one self-contained HTML file."""
    pairs = explanation.pairs[:PAIRS_SHOWN]
    found = snapshots.corpus.find(explanation.hit)
    assert found is not None  # it was explained
    (volume_id, _), row = found
    of_hit = ImageRequest(
        row.uri,
        (volume_id, row.labels.get("modality")),
        frozenset((pair.hit_plane or "", pair.hit) for pair in pairs),
    )
    uri = snapshots.uri_of_query(query)
    compared = frozenset((pair.query_plane or "", pair.query) for pair in pairs if pair.query is not None)
    of_query = None if uri is None else ImageRequest(uri, None, compared)
    images = snapshots.pictures.read([of_hit, *([of_query] if of_query else [])], model)
    of_both = images[of_hit], images[of_query] if of_query else None
    marked = np.zeros(explanation.shares.shape, np.bool_)
    best = np.abs(explanation.shares).argmax(axis=1)
    given = explanation.shares[np.arange(len(best)), best] != 0
    marked[np.flatnonzero(given), best[given]] = True
    entry = snapshots.corpus.recipe(model)
    return render(
        "explanation.html.j2",
        title="Why this hit",
        pairs=[
            _PairCard(
                " and ".join(filter(None, (_name(pair.query_plane, pair.query), _name(pair.hit_plane, pair.hit)))),
                pair.cosine,
                pair.share,
                _tile_of(of_both[1], pair.query_plane, pair.query),
                _tile_of(of_both[0], pair.hit_plane, pair.hit),
            )
            for pair in pairs
        ],
        matrix=_matrix_image(explanation.cosines, marked),
        query=redacted(explanation.query),
        hit=explanation.hit,
        score=explanation.score,
        words=explanation.words,
        rows=_named(explanation.query_slices),
        columns=_named(explanation.hit_slices),
        random_model=entry.model if entry.random_weights else "",
        snapshot=", ".join(snapshots.manifests),
        model=entry.model,
        image_size=IMAGE_SIZE,
    )


def _name(plane: str | None, index: int | None) -> str:
    """How the page names a slice; "" for a vector that is none."""
    return "" if index is None else f"{plane or 'row'} {index}"


def _named(slices: Slices) -> list[str]:
    if slices.slice_indices is None:
        return []
    return [_name(*each) for each in zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)]


@dataclass(frozen=True)
class _PairCard:
    """A pair of slices as the page shows it. query, hit: its pictures, None where there is none."""

    words: str
    cosine: float
    share: float
    query: Tile | None
    hit: Tile | None


@dataclass(frozen=True)
class _MatrixImage:
    """A matrix as an image. source: data URI. width, height: px."""

    source: str
    width: int
    height: int
    low: float
    high: float


def _matrix_image(cosines: NDArray[np.float32], marked: NDArray[np.bool_]) -> _MatrixImage:
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
    return _MatrixImage(source, large.shape[1], large.shape[0], low, high)


def _tile_of(images: VolumeImages | str | None, plane: str | None, index: int | None) -> Tile | None:
    """The picture of a slice, if there is one."""
    return images.by_slice.get((plane or "", index)) if isinstance(images, VolumeImages) and index is not None else None
