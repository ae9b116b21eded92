"""A map of the archive: volume vectors in two dimensions, by principal components."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medret.evaluate.figures import Evaluation
from medret.evaluate.relevance import text_column, values_of
from medret.evaluate.report_plots import COLOURS, Point
from medret.search import Snapshot

POINTS_MAX = 3000


def map_points(snapshot: Snapshot, found: Evaluation, level: str) -> tuple[list[Point], list[str], list[str], float]:
    """Points, the names of colours and of shapes, and the share of the variance that the map shows.

    Colours are the classes of the level, the most frequent first; shapes the modalities. Of large archives a
    sample is drawn.
    """
    labels = found.panel.candidates
    rows = np.arange(labels.num_rows)
    if len(rows) > POINTS_MAX:
        rows = np.sort(np.random.default_rng(found.bootstrap.seed).choice(rows, POINTS_MAX, replace=False))
    arm = found.leading
    ids = labels["volume_id"].to_pylist()
    asked = [snapshot.resolve(ids[row], model=arm.model, aggregation=arm.aggregation).volume for row in rows]
    places, share = principal_components(np.array(asked, np.float64))
    classes = ["; ".join(values_of(text)) or "no label" for text in text_column(labels, level)]
    shapes = [text or "unknown" for text in text_column(labels, "modality")]
    colour_names, shape_names = _by_count(classes), _by_count(shapes)
    points = [
        Point(
            float(x),
            float(y),
            colour_names.index(classes[row]),
            shape_names.index(shapes[row]),
            f"{ids[row]}: {classes[row]}, {shapes[row]}",
        )
        for row, (x, y) in zip(rows.tolist(), places, strict=True)
    ]
    return points, colour_names, shape_names, share


def principal_components(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(n, dim) vectors to (n, 2), and the share of their variance that is left.

    The sign of an axis means nothing; it is chosen so that the point farthest from the middle is on the positive side.
    """
    centred = vectors - vectors.mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    kept = min(2, len(lengths))
    places[:, :kept] = left[:, :kept] * lengths[:kept]
    signs = np.sign(places[np.abs(places).argmax(axis=0), np.arange(2)])
    total = float((lengths**2).sum())
    return places * np.where(signs == 0, 1, signs), float((lengths[:kept] ** 2).sum() / total) if total else 1.0


def _by_count(names: Sequence[str]) -> list[str]:
    return [name for name, _ in sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0]))]


def legend_names(names: Sequence[str]) -> tuple[list[str], int]:
    """The classes that have a colour of their own, and how many share the grey."""
    return list(names[: len(COLOURS)]), max(0, len(names) - len(COLOURS))
