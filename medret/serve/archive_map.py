"""A map of an archive: volumes as points in a plane, near each other where their vectors are.

It is computed from the volume index when it is asked for, from the volumes that the caller may see alone
(docs/decisions/0025). The plane is that of the two principal components of the volumes' centred unit vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from medret.search import Snapshots
from medret.search.answers_kept import keep_answers, made_once
from medret.search.shard import Shard
from medret.serve.volumes import Catalogue, catalogue_of

POINTS_MAX = 5000
MAPS_KEPT = 8  # per view of the snapshots
PREFERRED = ("organ", "body_region", "modality")  # labels to colour by, if none is chosen
CLASSES_MAX = 50  # values of a label that can be told apart by colour at all
BLOCK, STEPS = 12, 12  # of the iteration that finds the components

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Layout:
    """rows: of the catalogue, one per point. xy: (points, 2). spread: the share of the variance along x and y.

    total: how many volumes there are to choose points from.
    """

    rows: NDArray[np.int64]
    xy: Vectors
    spread: tuple[float, float]
    total: int


def evenly_chosen(volume_ids: list[str], most: int) -> NDArray[np.int64]:
    """The numbers of at most `most` volumes, ascending: those with the least hash, so that most remain later."""
    if len(volume_ids) <= most:
        return np.arange(len(volume_ids))
    hashes = np.fromiter((crc32(volume_id.encode()) for volume_id in volume_ids), np.uint32, len(volume_ids))
    return np.sort(np.argsort(hashes, kind="stable")[:most])


def principal_plane(vectors: Vectors) -> tuple[Vectors, tuple[float, float]]:
    """(n, dim) unit vectors -> (n, 2) their places on the two principal components, and the share of each.

    The vectors are centred and brought to unit length first, as an index holds them. Found by orthogonal iteration from
    a fixed start, so that equal vectors give equal maps.
    """
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2), np.float32), (0.0, 0.0)
    directions = vectors - vectors.mean(axis=0, keepdims=True)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    directions /= np.maximum(lengths, np.finfo(np.float32).tiny)
    directions[lengths[:, 0] < 1e-6] = 0  # equal to the mean: it has no direction
    directions -= directions.mean(axis=0, keepdims=True)
    total = float(np.square(directions, dtype=np.float64).sum())
    width = min(BLOCK, *directions.shape)
    if total < 1e-12:
        return np.zeros((len(vectors), 2), np.float32), (0.0, 0.0)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((directions.shape[1], width)).astype(np.float32))[0]
    for _ in range(STEPS):
        basis = np.linalg.qr(directions.T @ (directions @ basis))[0]
    within = directions @ basis
    _, _, turn = np.linalg.svd(within.astype(np.float64), full_matrices=False)
    places = np.zeros((len(vectors), 2))
    places[:, : min(2, width)] = within @ turn[:2].T
    for axis in range(2):  # a component has no sign of its own
        if np.sum(places[:, axis] ** 3) < 0:
            places[:, axis] *= -1
    shares = np.square(places).sum(axis=0) / total
    return places.astype(np.float32), (float(shares[0]), float(shares[1]))


class ArchiveMaps:
    """The maps of one view of snapshots, computed when they are asked for; the last ones are kept."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._corpus, self._catalogue = snapshots.corpus, catalogue_of(snapshots)
        self._lock = Lock()
        self._layouts = keep_answers(self._laid_out, MAPS_KEPT)

    def layout(self, model: str | None, where: str | None) -> Layout:
        """The map of the volumes that a filter keeps; raises UsageError for the model and the filter."""
        digest = self._corpus.recipe(model).digest
        with self._lock:  # of two who ask for the same map, one computes it
            return self._layouts(digest, where or None)

    def _laid_out(self, digest: str, where: str | None) -> Layout:
        entry = next(entry for entry in map(self._corpus.recipe, self._corpus.models) if entry.digest == digest)
        index = self._corpus.index(entry, self._corpus.aggregations[0])
        shown = np.zeros(self._catalogue.count, np.bool_)
        shown[self._catalogue.rows(where)] = True
        names: list[str] = []
        at: list[tuple[Shard, NDArray[np.int64], NDArray[np.int64]]] = []
        for shard, rows, numbers in self._placed(index.shards):
            chosen = shown[numbers]
            at.append((shard, rows[chosen], numbers[chosen]))
            names += shard.table.volume_ids(rows[chosen])
        points = evenly_chosen(names, POINTS_MAX)
        vectors, numbers_of = [np.empty((0, entry.dim), np.float32)], [np.empty(0, np.int64)]
        first = 0
        for shard, rows, numbers in at:
            own = points[(points >= first) & (points < first + len(rows))] - first
            vectors.append(shard.exact.vectors(rows[own]).astype(np.float32))
            numbers_of.append(numbers[own])
            first += len(rows)
        xy, spread = principal_plane(index.uncentred(np.concatenate(vectors)))
        return Layout(np.concatenate(numbers_of), xy, spread, len(names))

    def _placed(self, shards: list[Shard]) -> Iterator[tuple[Shard, NDArray[np.int64], NDArray[np.int64]]]:
        """For each shard the rows of its live volumes that are listed, and their rows in the catalogue."""
        for shard in shards:
            places = shard.places_of(None)
            numbers = self._catalogue.numbers(shard.store, shard.table.volumes[0])[places]
            yield shard, shard.first_rows(places)[numbers >= 0], numbers[numbers >= 0]


maps_of = made_once(ArchiveMaps)  # of a view of snapshots


def drawn_map(snapshots: Snapshots, *, model: str | None, where: str | None, label: str | None) -> dict[str, Any]:
    """The map of an archive as `page_messages.MapAnswer`; raises UsageError."""
    catalogue = catalogue_of(snapshots)
    with snapshots.corpus.reading():
        layout = maps_of(snapshots).layout(model, where)
    label = label or _default_label(catalogue, layout)
    values = catalogue.values(label, layout.rows) if label else [None] * len(layout.rows)
    rows = zip(catalogue.names(layout.rows), layout.xy.tolist(), values, strict=True)
    return {
        "points": [
            {"volume_id": volume_id, "store": store, "x": x, "y": y, "value": value}
            for (volume_id, store), (x, y), value in rows
        ],
        "total": layout.total,
        "label": label,
        "spread": list(layout.spread),
        "model": snapshots.corpus.recipe(model).model,
        "aggregation": snapshots.aggregations[0],
        "snapshots": list(snapshots.manifests),
    }


def _default_label(catalogue: Catalogue, layout: Layout) -> str | None:
    """The first label that tells points apart."""
    facets = catalogue.facets(layout.rows)
    names = [*(name for name in PREFERRED if name in facets), *facets]
    telling = [name for name in names if 2 <= len(facets[name]) <= CLASSES_MAX]
    return next(iter(telling or names), None)
