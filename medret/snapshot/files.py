"""The files of a snapshot: convert rows of the FILES table (schemas.FILES) to typed values, and back.

The table itself stays Arrow; `stored_files` makes Python objects only of the rows that a caller selects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from medret.embeddings.parquet import as_corrupt, judged, open_parquet
from medret.index import CENTRE_KIND, KINDS, ROWS_KIND
from medret.index.columns import int32_view
from medret.schemas import FILES
from medret.snapshot.names import check_files
from medret.storage import WrittenFile

SLICES, VOLUMES, PREVIEWS = "slices", "volumes", "previews"
EMBEDDING_KINDS = (SLICES, VOLUMES)  # files with vectors
SHARD_KINDS = (*EMBEDDING_KINDS, PREVIEWS)  # all files of an embedding shard
INDEX_KINDS = (*KINDS, ROWS_KIND)
ANY: Literal["*"] = "*"  # no aggregation has this name

ShardKey = tuple[str, str]  # of an embedding shard: recipe digest and key


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a snapshot, as the FILES table lists it.

    path: below the store. recipe: digest; None for the quarantine table. aggregation: None for slice vectors and
    previews.
    shard: key of the embedding or index shard that the file belongs to. indexed_in: key of the index shard that holds
    the vectors of this embedding file. recall: recall@10 of this index against exact search.
    """

    path: str
    kind: str
    sha256: str
    size_bytes: int
    rows: int
    recipe: str | None = None
    aggregation: str | None = None
    shard: str | None = None
    indexed_in: str | None = None
    recall: float | None = None

    @classmethod
    def of(
        cls,
        written: WrittenFile,
        kind: str,
        rows: int,
        recipe: str | None = None,
        aggregation: str | None = None,
        shard: str | None = None,
        recall: float | None = None,
    ) -> StoredFile:
        """Describe a file that was just written."""
        return cls(
            written.path, kind, written.sha256, written.size_bytes, rows, recipe, aggregation, shard, recall=recall
        )

    @property
    def folder(self) -> str:
        """Path of the file's folder below the store."""
        return self.path.rpartition("/")[0]

    @property
    def key(self) -> ShardKey:
        """Return the embedding shard of an embedding file."""
        return self.recipe or "", self.shard or ""


NAMES = tuple(field.name for field in fields(StoredFile))


def stored_files(
    table: pa.Table, kinds: Collection[str] = (), *, recipe: str | None = None, aggregation: str | None = ANY
) -> list[StoredFile]:
    """Return the files of a FILES table, in its order, that have these kinds, this recipe (digest) and aggregation."""
    import pyarrow.compute as pc  # slower to import than everything that a search needs from here

    if kinds:
        table = table.filter(pc.is_in(table["kind"], pa.array(sorted(kinds), table["kind"].type)))
    if recipe is not None:
        table = table.filter(pc.equal(table["recipe"], recipe))
    if aggregation != ANY:
        chosen = table["aggregation"]
        table = table.filter(pc.is_null(chosen) if aggregation is None else pc.equal(chosen, aggregation))
    columns = (table[name].to_pylist() for name in NAMES)
    return [StoredFile(*row) for row in zip(*columns, strict=True)]


def files_table(files: Iterable[StoredFile]) -> pa.Table:
    """Make a FILES table of these files, in their order."""
    rows = list(files)
    return pa.table([pa.array([getattr(row, field.name) for row in rows], field.type) for field in FILES], schema=FILES)


def slices_files(table: pa.Table) -> dict[ShardKey, StoredFile]:
    """Return the slices file of each embedding shard; the first one if there are several."""
    return {file.key: file for file in reversed(stored_files(table, [SLICES]))}


def previews_files(table: pa.Table) -> dict[ShardKey, StoredFile]:
    """Return the previews file of each embedding shard that has one; the first one if there are several."""
    return {file.key: file for file in reversed(stored_files(table, [PREVIEWS]))}


def read_index_files(path: Path) -> list[StoredFile]:
    """Read the index files from a FILES table on disk; do not decode the many rows of embedding files."""
    file = open_parquet(path, str(path), FILES)
    size_bytes = path.stat().st_size
    listed: list[dict[str, object]] = []
    with as_corrupt(str(path)):
        for group in range(file.num_row_groups):
            kinds = file.read_row_group(group, ["kind"])["kind"].combine_chunks()
            names = kinds.dictionary.to_pylist()
            codes = [code for code, kind in enumerate(names) if kind in (*INDEX_KINDS, CENTRE_KIND)]
            rows = np.flatnonzero(np.isin(int32_view(kinds.indices), codes)).tolist()
            if rows:  # the table is sorted by path, so these rows are close together
                table = file.read_row_group(group).slice(rows[0], rows[-1] + 1 - rows[0])
                span = judged(table, size_bytes).to_pylist()
                listed += [span[row - rows[0]] for row in rows]
        check_files(listed)
        return [StoredFile(**{name: row[name] for name in NAMES}) for row in listed]  # type: ignore[arg-type]


def mean_recall(files: Iterable[StoredFile]) -> dict[str, float]:
    """Return the recall@10 of each index kind among these files, weighted by the rows of its shards."""
    measured: dict[str, list[StoredFile]] = {}
    for file in files:
        if file.recall is not None:
            measured.setdefault(file.kind, []).append(file)
    return {
        kind: sum((file.recall or 0.0) * file.rows for file in members) / sum(file.rows for file in members)
        for kind, members in sorted(measured.items())
    }
