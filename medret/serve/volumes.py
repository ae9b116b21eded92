"""The indexed volumes: lists of them, counts of the values of their labels, one volume in full, and a map.

On a map, volumes are points in a plane, near each other where their vectors are. It is computed from the volume index
when it is asked for, from the volumes that the caller may see alone (docs/decisions/0025). The plane is that of the two
principal components of the volumes' centred unit vectors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.errors import NotFoundError, UsageError
from medret.search import Snapshots, VolumeName
from medret.search.answers_kept import keep_answers, made_once
from medret.search.filters import kept_rows, parse_filter
from medret.search.shard import Shard
from medret.storage import redacted

FACET_VALUES = 50  # of a label; one with more values is searched, not chosen from
DISTINCT_MAX = 1000  # values of a label in all volumes; one with more is not counted in any filter
NO_LABELS = ("volume_id", "uri")
FILTERS_KEPT = 32
POINTS_MAX = 5000  # of a map
MAPS_KEPT = 8  # per view of the snapshots
PREFERRED = ("organ", "body_region", "modality")  # labels to colour by, if none is chosen
CLASSES_MAX = 50  # values of a label that can be told apart by colour at all
BLOCK, STEPS = 12, 12  # of the iteration that finds the components

Mask = NDArray[np.bool_]
Vectors = NDArray[np.float32]


class Catalogue:
    """The volumes of snapshots as one table: store after store, each in the order of volume_id. Threads may share it.

    What a list needs is made from the labels once and kept: a list of a million volumes takes a fraction of a second.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self._uris = [contents.uri for contents in snapshots.corpus.stores]
        with snapshots.corpus.reading():
            tables = snapshots.corpus.labels
        self._table = pa.concat_tables(tables)
        self._bounds = np.cumsum([0, *(table.num_rows for table in tables)])
        self._kept: Callable[[str], Mask] = keep_answers(self._filtered, FILTERS_KEPT)

    @property
    def count(self) -> int:
        """How many volumes there are."""
        return int(self._table.num_rows)

    @property
    def label_columns(self) -> list[str]:
        """The names of the labels."""
        return [name for name in self._table.column_names if name not in NO_LABELS]

    def rows(self, where: str | None = None, contains: str = "") -> NDArray[np.int64]:
        """The numbers of the rows that a filter keeps and whose volume_id has `contains` in it, in any case.

        Raises UsageError for the filter.
        """
        mask = self._kept(where) if where else None
        if contains:
            needle = pc.utf8_lower(pa.scalar(contains)).as_py()
            named = _mask(pc.match_substring(self._lower_ids, needle))
            mask = named if mask is None else mask & named
        return np.arange(self._table.num_rows) if mask is None else np.flatnonzero(mask)

    def page(self, rows: NDArray[np.int64], after: str | None, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Some of the rows as `messages.VolumeRow`, and what names the next page. Raises UsageError for `after`."""
        start = int(np.searchsorted(rows, self._place(after)))
        shown = [self.row(number) for number in rows[start : start + limit].tolist()]
        if start + limit >= len(rows):
            return shown, None
        return shown, f"{self._store(int(rows[start + limit - 1]))}:{shown[-1]['volume_id']}"

    def row(self, number: int) -> dict[str, Any]:
        """One row as `messages.VolumeRow`."""
        labels = {name: self._table[name][number].as_py() for name in self.label_columns}
        volume_id = self._table["volume_id"][number].as_py()
        return {"volume_id": volume_id, "store": self._uris[self._store(number)], "labels": labels}

    def facets(self, rows: NDArray[np.int64]) -> dict[str, list[dict[str, Any]]]:
        """How many of the rows have each value of each label, the most frequent first."""
        facets = {}
        for name, (values, codes) in self._coded.items():
            counts = np.bincount(codes[rows] if len(rows) < len(codes) else codes, minlength=len(values))
            pairs = [(values[code], int(counts[code])) for code in np.flatnonzero(counts)]
            if len(pairs) > FACET_VALUES or all(value is None for value, _ in pairs):
                continue
            pairs.sort(key=lambda pair: (-pair[1], pair[0] is None, pair[0] or ""))
            facets[name] = [{"value": value, "count": count} for value, count in pairs]
        return facets

    def values(self, name: str, rows: NDArray[np.int64]) -> list[str | None]:
        """The label of each row; raises UsageError if there is no such label."""
        if name not in self.label_columns:
            raise UsageError(f"label '{name}' is not available; there are {', '.join(self.label_columns)}")
        if name in self._coded:
            values, codes = self._coded[name]
            return [values[code] for code in codes[rows].tolist()]
        return [self._table[name][number].as_py() for number in rows.tolist()]

    def names(self, rows: NDArray[np.int64]) -> list[tuple[str, str]]:
        """The volume_id of each row, and the URI of its store."""
        ids = self._table["volume_id"]
        return [(ids[number].as_py(), self._uris[self._store(number)]) for number in rows.tolist()]

    def numbers(self, store: int, volume_ids: pa.StringArray) -> NDArray[np.int64]:
        """The row of each volume of a store; -1 for those that are not listed."""
        first, last = self._bounds[store : store + 2].tolist()
        ids = self._table["volume_id"].slice(first, last - first)
        places = pc.fill_null(pc.index_in(volume_ids, value_set=ids), -1).to_numpy(zero_copy_only=False)
        return np.where(places < 0, -1, places.astype(np.int64) + first)

    def _filtered(self, where: str) -> Mask:
        return kept_rows(parse_filter(where, self._table), self._table)

    @cached_property
    def _lower_ids(self) -> pa.ChunkedArray:
        return pc.utf8_lower(self._table["volume_id"])

    @cached_property
    def _coded(self) -> dict[str, tuple[list[str | None], NDArray[np.int32]]]:
        """The labels with few values: the values, and for each row the number of its value."""
        coded = {}
        for name in self.label_columns:
            if pc.count_distinct(self._table[name], mode="all").as_py() > DISTINCT_MAX:
                continue
            encoded = self._table[name].combine_chunks().dictionary_encode(null_encoding="encode")
            coded[name] = (encoded.dictionary.to_pylist(), encoded.indices.to_numpy())
        return coded

    def _store(self, number: int) -> int:
        return int(np.searchsorted(self._bounds, number, side="right")) - 1

    def _place(self, after: str | None) -> int:
        """The number of the first row after a page."""
        if after is None:
            return 0
        store, _, volume_id = after.partition(":")
        number = int(store) if store.isdecimal() and store.isascii() and len(store) < 10 else -1
        if not (0 <= number < len(self._uris) and volume_id):
            raise UsageError(f"after is {after!r}, expected `next` of an earlier page")
        first, last = self._bounds[number : number + 2].tolist()
        ids = self._table["volume_id"]
        return bisect_right(range(last), volume_id.encode(), first, last, key=lambda row: ids[row].as_py().encode())


def _mask(chunked: pa.ChunkedArray) -> Mask:
    mask: Mask = chunked.to_numpy()
    return mask.astype(np.bool_)


catalogue_of = made_once(Catalogue)  # of a view of snapshots


def listed(
    snapshots: Snapshots, *, where: str | None, contains: str, after: str | None, limit: int, facets: bool
) -> dict[str, Any]:
    """A page of volumes in the order of the stores and of volume_id, as `messages.VolumesAnswer`.

    where: a filter on labels. contains: a part of the volume_id, whatever its case. after: `next` of the page before.
    Raises UsageError.
    """
    catalogue = catalogue_of(snapshots)
    rows = catalogue.rows(where, contains)
    volumes, following = catalogue.page(rows, after, limit)
    return {
        "total": len(rows),
        "volumes": volumes,
        "next": following,
        "facets": catalogue.facets(rows) if facets else None,
    }


def described(snapshots: Snapshots, name: VolumeName) -> dict[str, Any]:
    """What is known of one volume, as `messages.VolumeAnswer`; raises NotFoundError."""
    corpus = snapshots.corpus
    with corpus.reading():
        found = corpus.find(name.text)
        if found is None:
            raise NotFoundError(f"there is no volume '{name.volume_id}'")
        volume, row = found
        contents = corpus.stores[volume[1]]
        slices = corpus.index(corpus.recipe(None), None).slices_of(volume)
        previews = snapshots.previews([volume])[volume]
    planes: dict[str, list[int]] = {}
    if slices is not None and slices.slice_indices is not None:
        for plane, index in sorted(zip(slices.plane_names, slices.slice_indices.tolist(), strict=True)):
            planes.setdefault(str(plane), []).append(index)
    spacing_mm = contents.ledger.spacing_mm(volume[0])
    shape = contents.ledger.shape(volume[0])
    return {
        "volume_id": row.volume_id,
        "store": contents.uri,
        "labels": dict(row.labels),
        "uri": redacted(row.uri),
        "planes": planes,
        "shape": None if shape is None else list(shape),
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "previews": [{"plane": preview.plane, "slice_index": preview.slice_index} for preview in previews],
        "snapshots": list(snapshots.manifests),
    }


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
