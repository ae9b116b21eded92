"""What a snapshot holds: its recipes, indices and ledger, each opened when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from medret.embeddings import parse_aggregation
from medret.errors import UsageError
from medret.index import KINDS, ROWS_KIND, IndexSettings
from medret.index.columns import index_array, int32_view
from medret.search.cache import LocalFiles
from medret.search.ledger import Ledger
from medret.search.shards import ShardedIndex, ShardFiles
from medret.snapshot import Manifest, RecipeEntry
from medret.snapshot.manifest import TableKind, snapshot_folder
from medret.storage import Location


class Contents:
    """The parts of one snapshot by name. models, aggregations: names; the first of each is the default."""

    def __init__(self, store: Location, snapshot_id: str, manifest: Manifest) -> None:
        self.uri = store.uri
        self.id = snapshot_id
        self.manifest = manifest
        self.models = tuple(str(entry.recipe["model"]["name"]) for entry in manifest.recipes)
        self.aggregations = tuple(manifest.aggregations)
        self._local = LocalFiles(store)
        self._settings = IndexSettings.from_json(manifest.index_settings)
        self._index_files = [row for path in self._tables("files") for row in index_file_rows(path)]
        self._indices: dict[tuple[str, str | None], ShardedIndex] = {}

    @cached_property
    def ledger(self) -> Ledger:
        """Labels, URIs and outcomes by volume_id."""
        return Ledger(self._tables("ledger"))

    @cached_property
    def _dead(self) -> dict[str, frozenset[str]]:
        """Volumes whose rows in an index shard are not part of the snapshot, by the shard's key."""
        found: dict[str, set[str]] = {}
        for path in self._tables("tombstones"):
            for row in pq.ParquetFile(path).read().to_pylist():
                found.setdefault(row["shard"], set()).add(row["volume_id"])
        return {key: frozenset(volume_ids) for key, volume_ids in found.items()}

    def _tables(self, kind: TableKind) -> list[Path]:
        folder = snapshot_folder(self.id)
        return [self._local.path(f"{folder}/{table.path}", table.sha256) for table in self.manifest.tables_of(kind)]

    def recipe(self, model: str | None) -> RecipeEntry:
        """The recipe of a model; raises UsageError naming those there are."""
        if model is None:
            return self.manifest.recipes[0]
        if model not in self.models:
            raise UsageError(f"model '{model}' is not in snapshot {self.id}, which has {', '.join(self.models)}")
        return self.manifest.recipes[self.models.index(model)]

    def aggregation(self, name: str | None) -> str:
        """The canonical name of an aggregation; raises UsageError naming those there are."""
        if name is None:
            return self.aggregations[0]
        canonical = parse_aggregation(name).name
        if canonical not in self.aggregations:
            there = ", ".join(self.aggregations)
            raise UsageError(f"aggregation '{canonical}' is not in snapshot {self.id}, which has {there}")
        return canonical

    def identify(self, uri: str, own_ids: Sequence[str]) -> tuple[str, str | None]:
        """The id and the modality label that a file is sliced with; own_ids: volumes that have the same bytes.

        A file of the archive is sliced as it was there: `random:N` draws from the id, the window follows the label.
        """
        row = self.ledger.row(own_ids[0]) if own_ids else None
        return (own_ids[0], row.labels["modality"]) if row else (PurePosixPath(uri).name, None)

    def index(self, entry: RecipeEntry, aggregation: str | None) -> ShardedIndex:
        """The index over the volume vectors of an aggregation or, for None, over the slice vectors."""
        key = (str(entry.recipe["digest"]), aggregation)
        if key not in self._indices:
            own = [row for row in self._index_files if (row["recipe"], row["aggregation"]) == key]
            shards = group_shards(own, self._dead)
            self._indices[key] = ShardedIndex(shards, int(entry.recipe["model"]["dim"]), self._settings, self._local)
        return self._indices[key]


def index_file_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a FILES table that are index files. Embedding files, the many, are not needed to search."""
    table = pq.ParquetFile(path, read_dictionary=["kind"]).read()
    if not table.num_rows:
        return []
    kinds = table["kind"].combine_chunks()
    wanted = [code for code, kind in enumerate(kinds.dictionary.to_pylist()) if kind in (*KINDS, ROWS_KIND)]
    rows = np.flatnonzero(np.isin(int32_view(kinds.indices), wanted))
    listed: list[dict[str, Any]] = table.take(index_array(rows)).to_pylist()
    return listed


def group_shards(rows: list[dict[str, Any]], dead: Mapping[str, frozenset[str]]) -> list[ShardFiles]:
    """Rows of the FILES table to shards, in the order of their keys. dead: volumes under tombstones, by key."""
    files: dict[str, dict[str, tuple[str, str]]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        files.setdefault(row["shard"], {})[row["kind"]] = (row["path"], row["sha256"])
        counts[row["shard"]] = row["rows"]
    return [ShardFiles(key, counts[key], files[key], dead.get(key, frozenset())) for key in sorted(files)]
