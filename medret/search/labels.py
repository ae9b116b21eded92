"""The labels of all volumes as one table: what filters, exclusions and evaluations look things up in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.embeddings.parquet import read_parquet
from medret.index.columns import index_array
from medret.schemas import LEDGER
from medret.search.ledger import LABELS

KEYS = ("volume_id", "uri", *LABELS)


def read_label_table(paths: Sequence[Path]) -> pa.Table:
    """The embedded volumes of a ledger, in volume_id order.

    Columns: volume_id, uri, subject, modality, body_region, organ, then one string column for each metadata key, null
    where a volume has none. A key named like one of the first columns is left out: the label decides.
    """
    import pyarrow.compute as pc

    columns = [*KEYS, "metadata", "status"]
    ledger = pa.concat_tables([_read(path, columns) for path in paths])
    embedded = ledger.filter(pc.equal(ledger["status"], "embedded")).combine_chunks()
    arrays = {name: _one(embedded[name]) for name in KEYS}
    for key, values in _metadata(_one(embedded["metadata"])).items():
        arrays.setdefault(key, values)
    return pa.table(arrays)


def _read(path: Path, columns: list[str]) -> pa.Table:
    fields = [LEDGER.field(name) for name in columns]
    return read_parquet(path.read_bytes(), columns, name=str(path), fields=fields)


def _metadata(maps: pa.MapArray) -> dict[str, pa.Array]:
    """One string array a key, in the order of the keys' names."""
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
    there = np.packbits(at >= 0, bitorder="little")
    picked = pa.Array.from_buffers(pa.int64(), len(at), [pa.py_buffer(there), index_array(at).buffers()[1]])
    return values.take(picked)


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
    held = np.frombuffer(flat.buffers()[1], np.uint8)[flat.offset : flat.offset + len(flat)]
    return held.astype(np.bool_)


def _one(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
