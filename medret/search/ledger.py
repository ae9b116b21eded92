"""The ledger of a snapshot: single rows by volume_id, and all labels as one table.

A row is looked up in the changes since the ledger's base, then in the base. Both are sorted by volume_id. The Parquet
statistics say which row group holds an id; only that group is decoded and kept, so opening a snapshot and showing ten
hits costs the same at 10^2 and at 10^7 volumes. Filters, exclusions and evaluations need all volumes: they read the
label table.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.embeddings.parquet import as_corrupt, check_required, judged, open_parquet, read_parquet
from medret.errors import CorruptError
from medret.index.columns import Coded, Maps, index_array, int32_view
from medret.schemas import GONE, LABELS, LEDGER
from medret.snapshot.tables import merged

COLUMNS = ["volume_id", "uri", "status", "code", "reason", *LABELS, "metadata", "shards"]
MAPS, CODED = ("metadata", "shards"), ("uri", "status", "code", "reason", *LABELS)
KEYS = ("volume_id", "uri", *LABELS)
GROUPS_KEPT = 256  # decoded row groups, of some 16,000 rows and 4 MB each
LocalFile = Callable[[], Path]
_AXIS_OF = dict(zip("LRPAIS", (0, 0, 1, 1, 2, 2), strict=True))  # of an orientation's letter, in RAS+ order


@dataclass(frozen=True)
class LedgerRow:
    """What the ledger says about one volume. labels: the four label columns, None where unknown, then the metadata."""

    volume_id: str
    uri: str
    embedded: bool
    problem: str | None  # "code: reason" of a volume in quarantine
    labels: Mapping[str, str | None]
    shards: Mapping[str, str]  # recipe digest -> key of the embedding shard


class Ledger:
    """The ledger of a snapshot.

    base, changes: its Parquet files; rows of `changes` replace others. Each is a function that gives the local path: a
    remote file is copied when it is first needed.
    """

    def __init__(self, base: Sequence[LocalFile], changes: Sequence[LocalFile] = ()) -> None:
        self._base, self._changes = _Rows(base), _Rows(changes)

    def rows(self, volume_ids: Iterable[str]) -> dict[str, LedgerRow]:
        """volume_id -> row, for those volumes that the ledger has."""
        rows = {volume_id: self.row(volume_id) for volume_id in volume_ids}
        return {volume_id: row for volume_id, row in rows.items() if row is not None}

    def row(self, volume_id: str) -> LedgerRow | None:
        """The row of one volume; None if the ledger lacks it."""
        group = self._group_with(volume_id)
        return group.row(volume_id) if group else None

    def spacing_mm(self, volume_id: str) -> tuple[float, float, float] | None:
        """Distances between the voxels of a volume along x, y, z; None if not known."""
        facts = self._facts(volume_id)
        if facts.get("spacing_assumed", True):
            return None
        with _reading_facts(volume_id):
            x, y, z = map(float, facts["spacing_mm"])
            if not all(0 < side < math.inf for side in (x, y, z)):
                raise ValueError(f"its voxels are {x} x {y} x {z} mm")
            return x, y, z

    def shape(self, volume_id: str) -> tuple[int, int, int] | None:
        """Sides of a volume in voxels along x, y, z (RAS+ order); None if not known."""
        facts = self._facts(volume_id)
        if "shape" not in facts or "orientation" not in facts:
            return None
        with _reading_facts(volume_id):
            sides = {
                _AXIS_OF[letter]: int(side)
                for letter, side in zip(facts["orientation"], [*facts["shape"], 1, 1][:3], strict=True)
            }
            return sides[0], sides[1], sides[2]

    def crop_box(self, volume_id: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """First (inclusive) and last (exclusive) voxel of what was sliced, RAS+ order; None if not known."""
        facts = self._facts(volume_id)
        if "crop_box" not in facts:
            return None
        with _reading_facts(volume_id):
            first, last = (tuple(map(int, corner)) for corner in facts["crop_box"])
            if len(first) != 3 or len(last) != 3:
                raise ValueError("its crop box has no three sides")
            return first, last

    def content_sha256(self, volume_id: str) -> str | None:
        """The sha256 of a volume's bytes when it was embedded; None if not known."""
        group = self._group_with(volume_id)
        return group.content_sha256(volume_id) if group else None

    def _facts(self, volume_id: str) -> dict[str, Any]:
        """VolumeFacts of a volume as JSON; empty if the ledger has none."""
        group = self._group_with(volume_id)
        with _reading_facts(volume_id):
            facts = json.loads(group.facts(volume_id) if group else "{}")
            return dict(facts.items())

    def ids_with_content(self, *sha256: str) -> list[str]:
        """The embedded volumes whose bytes have one of these sha256, sorted."""
        ids = [volume_id for volume_id in self._base.ids_with(sha256) if not self._changes.group_with(volume_id)]
        return sorted([*ids, *self._changes.ids_with(sha256)])

    def _group_with(self, volume_id: str) -> _Group | None:
        return self._changes.group_with(volume_id) or self._base.group_with(volume_id)


class _Rows:
    """The rows of some Parquet files in volume_id order; a file is opened when it is first needed."""

    def __init__(self, files: Sequence[LocalFile]) -> None:
        self._numbers = range(len(files))
        self._file = file = cache(lambda number: _File(files[number]()))
        self._group = lru_cache(GROUPS_KEPT)(lambda number, group: _Group(file(number), group))  # not self: no cycle

    def group_with(self, volume_id: str) -> _Group | None:
        """The row group that has a row of the volume; None if there is no such row."""
        key = volume_id.encode()
        number = bisect_right(self._numbers, key, key=lambda number: self._file(number).first_id) - 1
        place = -1 if number < 0 else bisect_right(self._file(number).first_ids, key) - 1
        group = None if place < 0 else self._group(number, self._file(number).groups[place])
        return group if group and volume_id in group else None

    def ids_with(self, sha256: Sequence[str]) -> list[str]:
        """The embedded volumes whose bytes have one of these sha256."""
        import pyarrow.compute as pc

        ids: list[str] = []
        for number in self._numbers:
            table = self._file(number).read(["volume_id", "content_sha256", "status"])
            same = pc.is_in(table["content_sha256"], value_set=pa.array(sha256, pa.string()))
            same = pc.and_(same, pc.equal(table["status"], "embedded"))
            ids += table["volume_id"].filter(same).to_pylist()
        return ids


class _File:
    """One Parquet file, read by one thread at a time: several threads in one pyarrow reader can crash the process."""

    def __init__(self, path: Path) -> None:
        self._name, self._size_bytes = str(path), path.stat().st_size
        self._file = open_parquet(path, self._name, LEDGER, memory_map=True)
        self._reading = Lock()
        numbers = range(self._file.num_row_groups)
        self.groups = [number for number in numbers if self._file.metadata.row_group(number).num_rows]
        self.first_ids = [self._first_id(group).encode() for group in self.groups]
        self.first_id = self.first_ids[0] if self.first_ids else b""

    def read(self, columns: list[str], group: int | None = None) -> pa.Table:
        """Columns of one row group, or of all of them."""
        with self._reading, as_corrupt(self._name):
            read = self._file.read if group is None else partial(self._file.read_row_group, group)
            table = judged(read(columns=columns), self._size_bytes)
            check_required(table, LEDGER)
            return table

    def _first_id(self, group: int) -> str:
        """The smallest volume_id of a row group, from its statistics where it has them."""
        column = self._file.schema_arrow.names.index("volume_id")
        with as_corrupt(self._name):
            statistics = self._file.metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                return str(statistics.min)
        return str(self.read(["volume_id"], group)["volume_id"][0].as_py())


class _Group:
    """A decoded row group. The facts, its largest part, are decoded when they are first needed."""

    def __init__(self, file: _File, number: int) -> None:
        self._file, self._number = file, number
        batch = self._read(COLUMNS)
        ids = batch.column("volume_id")
        names = ids.dictionary.to_pylist()
        self._places = {names[code]: place for place, code in enumerate(int32_view(ids.indices).tolist())}
        self._coded = {name: Coded(batch.column(name)) for name in CODED}
        self._maps = {name: Maps(batch.column(name)) for name in MAPS}

    def __contains__(self, volume_id: str) -> bool:
        return volume_id in self._places

    def row(self, volume_id: str) -> LedgerRow | None:
        """The row of one of its volumes; None if the volume is gone."""
        at, texts = self._places[volume_id], self._coded
        if texts["status"][at] == GONE:
            return None
        labels = {name: self._coded[name][at] for name in LABELS}
        for key, value in self._maps["metadata"][at]:
            labels.setdefault(key, value)
        embedded = self._coded["status"][at] == "embedded"
        problem = None if embedded else f"{texts['code'][at]}: {texts['reason'][at]}"
        shards = {key: str(value) for key, value in self._maps["shards"][at]}
        return LedgerRow(volume_id, str(texts["uri"][at]), embedded, problem, labels, shards)

    def facts(self, volume_id: str) -> str:
        """JSON of medret.volume.read.VolumeFacts, or an empty object."""
        return self._facts[self._places[volume_id]] or "{}"

    def content_sha256(self, volume_id: str) -> str | None:
        """As `Ledger.content_sha256`."""
        return self._contents[self._places[volume_id]]

    @cached_property
    def _facts(self) -> Coded:
        return Coded(self._read(["facts"]).column("facts"))

    @cached_property
    def _contents(self) -> Coded:
        return Coded(self._read(["content_sha256"]).column("content_sha256"))

    def _read(self, columns: list[str]) -> pa.RecordBatch:
        (batch,) = self._file.read(columns, self._number).combine_chunks().to_batches()
        return batch


@contextmanager
def _reading_facts(volume_id: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(f"the ledger's facts of {volume_id[:200]!r} cannot be read: {error}") from error


def read_label_table(base: Sequence[Path], changes: Sequence[Path] = ()) -> pa.Table:
    """The embedded volumes of a ledger (see `Ledger`), in volume_id order.

    Columns: volume_id, uri, subject, modality, body_region, organ, then one string column for each metadata key, null
    where a volume has none. A key with the name of one of the first columns is ignored: the label counts.
    """
    import pyarrow.compute as pc

    columns = [*KEYS, "metadata", "status"]
    with as_corrupt("the ledger"):
        since = pa.concat_tables([LEDGER.empty_table().select(columns), *(_read(path, columns) for path in changes)])
        ledger = pa.concat_tables(merged((_read(path, columns) for path in base), since))
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded")).combine_chunks()
    arrays = {name: _one(embedded[name]) for name in KEYS}
    for key, values in _metadata(_one(embedded["metadata"])).items():
        arrays.setdefault(key, values)
    return pa.table(arrays)


def _read(path: Path, columns: list[str]) -> pa.Table:
    fields = [LEDGER.field(name) for name in columns]
    return read_parquet(path.read_bytes(), columns, name=str(path), fields=fields)


def _metadata(maps: pa.MapArray) -> dict[str, pa.Array]:
    """Key -> string array, in the order of the keys."""
    import pyarrow.compute as pc

    as_lists = maps.cast(pa.list_(pa.struct([pa.field("key", pa.string(), False), pa.field("value", pa.string())])))
    pairs = _one(pc.list_flatten(as_lists))
    if not len(pairs):
        return {}
    parents = int64_of(pc.list_parent_indices(as_lists))
    encoded = pairs.field("key").dictionary_encode()
    codes = int64_of(encoded.indices)
    names = encoded.dictionary.to_pylist()
    columns = {}
    for code, name in sorted(enumerate(names), key=lambda pair: str(pair[1])):
        places = np.flatnonzero(codes == code)
        at = np.full(len(maps), -1, np.int64)
        at[parents[places]] = places
        columns[str(name)] = take_or_null(pairs.field("value"), at)
    return columns


def take_or_null(values: pa.Array, at: NDArray[np.int64]) -> pa.Array:
    """values[at], null where `at` is negative."""
    valid = np.packbits(at >= 0, bitorder="little")
    indices = pa.Array.from_buffers(pa.int64(), len(at), [pa.py_buffer(valid), index_array(at).buffers()[1]])
    return values.take(indices)


def int64_of(values: pa.Array) -> NDArray[np.int64]:
    """An integer array without nulls as numpy."""
    wide = values.cast(pa.int64())
    return np.frombuffer(wide.buffers()[1], np.int64)[wide.offset : wide.offset + len(wide)]


def mask_of(values: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """A boolean array as numpy, null as False."""
    import pyarrow.compute as pc

    flat = _one(pc.fill_null(values, False)).cast(pa.uint8())
    if not len(flat):
        return np.zeros(0, np.bool_)
    bytes_of_values = np.frombuffer(flat.buffers()[1], np.uint8)[flat.offset : flat.offset + len(flat)]
    return bytes_of_values.astype(np.bool_)


def _one(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
