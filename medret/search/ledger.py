"""Rows of the ledger by volume_id, read as they are asked for.

The ledger is sorted by volume_id. Its Parquet statistics say which row group holds an id; only that group is
decoded, and kept, so opening a snapshot and showing ten hits costs the same at 10^2 and at 10^7 volumes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medret.index.rows import SortedIds

LABELS = ("subject", "modality", "body_region", "organ")
COLUMNS = ["volume_id", "uri", "status", "code", "reason", *LABELS, "metadata", "facts", "shards"]
GROUPS_KEPT = 64  # decoded row groups; some 16,000 rows each


@dataclass(frozen=True)
class LedgerRow:
    """What the ledger says about one volume. labels: the four label columns, None where unknown, then the metadata."""

    volume_id: str
    uri: str
    embedded: bool
    problem: str | None  # "code: reason" of a volume in quarantine
    labels: Mapping[str, str | None]
    shards: Mapping[str, str]  # recipe digest -> key of the embedding shard
    facts: str | None  # JSON of medret.volume.facts.VolumeFacts

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Between voxels along x, y, z; None where it is not known."""
        facts = json.loads(self.facts) if self.facts else {}
        if facts.get("spacing_assumed", True):
            return None
        x, y, z = facts["spacing_mm"]
        return float(x), float(y), float(z)


class Ledger:
    """The ledger of a snapshot, in one or more local Parquet files in volume_id order."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [pq.ParquetFile(path, memory_map=True) for path in paths]
        self._groups: list[tuple[int, int]] = []
        self._first_ids: list[bytes] = []
        for number, file in enumerate(self._files):
            for group in range(file.metadata.num_row_groups):
                self._groups.append((number, group))
                self._first_ids.append(_first_id(file, group).encode())
        self._group = lru_cache(GROUPS_KEPT)(self._read_group)

    def rows(self, volume_ids: Iterable[str]) -> dict[str, LedgerRow]:
        """volume_id -> row, of those that the ledger has."""
        found = {}
        for volume_id in volume_ids:
            row = self.row(volume_id)
            if row is not None:
                found[volume_id] = row
        return found

    def row(self, volume_id: str) -> LedgerRow | None:
        """The row of one volume, or None."""
        place = bisect_right(self._first_ids, volume_id.encode()) - 1
        if place < 0:
            return None
        batch, ids = self._group(place)
        at = ids.find(volume_id)
        return _row(batch.slice(at.start, 1)) if at.stop > at.start else None

    def ids_with_content(self, sha256: str) -> list[str]:
        """The embedded volumes whose bytes have that sha256, sorted."""
        ids: list[str] = []
        for file in self._files:
            table = file.read(columns=["volume_id", "content_sha256", "status"])
            same = pc.and_(pc.equal(table["content_sha256"], sha256), pc.equal(table["status"], "embedded"))
            ids += table["volume_id"].filter(same).to_pylist()
        return sorted(ids)

    def _read_group(self, place: int) -> tuple[pa.RecordBatch, SortedIds]:
        number, group = self._groups[place]
        table = self._files[number].read_row_group(group, columns=COLUMNS).combine_chunks()
        batch = table.to_batches()[0]
        return batch, SortedIds(batch.column("volume_id"))


def _first_id(file: pq.ParquetFile, group: int) -> str:
    """The smallest volume_id of a row group, from its statistics where it has them."""
    column = file.schema_arrow.names.index("volume_id")
    statistics = file.metadata.row_group(group).column(column).statistics
    if statistics is not None and statistics.has_min_max:
        return str(statistics.min)
    return str(file.read_row_group(group, columns=["volume_id"])["volume_id"][0].as_py())


def _row(batch: pa.RecordBatch) -> LedgerRow:
    values = {name: batch.column(name)[0].as_py() for name in COLUMNS}
    labels = {name: values[name] for name in LABELS}
    for key, value in values["metadata"] or ():
        labels.setdefault(key, value)
    embedded = values["status"] == "embedded"
    problem = None if embedded else f"{values['code']}: {values['reason']}"
    shards = dict(values["shards"] or ())
    return LedgerRow(values["volume_id"], values["uri"], embedded, problem, labels, shards, values["facts"])
