"""Lists of the indexed volumes, and counts of the values of their labels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medret.errors import NotFoundError, UsageError
from medret.search import Snapshots, VolumeName
from medret.search.answers_kept import keep_answers, made_once
from medret.search.filters import kept_rows, parse_filter
from medret.storage import redacted

FACET_VALUES = 50  # of a label; one with more values is searched, not chosen from
DISTINCT_MAX = 1000  # values of a label in all volumes; one with more is not counted in any filter
NO_LABELS = ("volume_id", "uri")
FILTERS_KEPT = 32

Mask = NDArray[np.bool_]


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
        if not (store.isdecimal() and store.isascii() and int(store) < len(self._uris) and volume_id):
            raise UsageError(f"after is {after!r}, expected `next` of an earlier page")
        first, last = self._bounds[int(store) : int(store) + 2].tolist()
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
