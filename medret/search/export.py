"""The live rows of a snapshot with their labels, as one Parquet file for other tools."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medret.embeddings import parse_aggregation
from medret.embeddings.parquet import read_parquet, read_vectors
from medret.errors import StorageError, UsageError
from medret.search.snapshot import Snapshot
from medret.snapshot import read_files, read_ledger
from medret.snapshot.files import EMBEDDING_KINDS, LIVE_COLUMNS, live_rows, live_shards, stored_files
from medret.storage import Location, read_checked

SLICE_KEYS = ("plane", "position", "relative", "position_mm", "source")  # of slice vectors
EXPORTED = {"source": "slice_source"}  # because tables of labels have a column `source`


def export_rows(
    snapshot: Snapshot, out: Path, *, model: str | None = None, aggregation: str | None = None, slices: bool = False
) -> int:
    """Write a snapshot's vectors of one model; returns how many rows.

    One row per volume, or per slice vector with `slices`: volume_id, for a slice its plane, position, relative,
    position_mm and slice_source, `vector` (float32, length 1, as embedded: not centred), then uri, subject, modality,
    body_region, organ and the metadata, as text. Volumes are in the order of the embedding files. Raises UsageError for
    a model or aggregation that the snapshot lacks, StorageError if the file cannot be written.
    """
    if not out.name:
        raise UsageError(f"{out} is a folder, expected the name of a file to write")
    entry = snapshot.recipe(model)
    canonical = None if slices else parse_aggregation(aggregation or snapshot.aggregations[0]).name
    if canonical is not None and canonical not in snapshot.aggregations:
        raise UsageError(
            f"aggregation '{canonical}' is not in snapshot {snapshot.id}: {', '.join(snapshot.aggregations)}"
        )
    labels = snapshot.labels()
    key_columns = ("volume_id", *(EXPORTED.get(name, name) for name in SLICE_KEYS), "vector")
    label_columns = [name for name in labels.column_names if name not in key_columns]
    rows_of = {volume_id: row for row, volume_id in enumerate(labels["volume_id"].to_pylist())}
    written, temporary = 0, out.with_name(f".{out.name}.tmp")
    try:
        writer: pq.ParquetWriter | None = None
        for table in _live_tables(snapshot, entry.digest, canonical):
            numbers = [rows_of[volume_id] for volume_id in table["volume_id"].to_pylist()]
            labels_of_rows = labels.select(label_columns).take(pa.array(numbers, pa.int64()))
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(read_vectors(table).astype(np.float32).reshape(-1)), entry.model.dim
            )
            keys = {EXPORTED.get(name, name): table[name] for name in table.column_names if name != "vector"}
            columns = keys | {"vector": vectors}
            rows_with_labels = pa.table(columns | {name: labels_of_rows[name] for name in label_columns})
            writer = writer or pq.ParquetWriter(temporary, rows_with_labels.schema)
            writer.write_table(rows_with_labels)
            written += rows_with_labels.num_rows
        if writer is None:
            raise UsageError(f"snapshot {snapshot.id} of {snapshot.uri} has no vectors to export")
        writer.close()
        temporary.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be written, it may be impossible to look for it too
            temporary.unlink(missing_ok=True)
    return written


def _live_tables(snapshot: Snapshot, digest: str, aggregation: str | None) -> Iterator[pa.Table]:
    """The rows of each embedding file that the ledger points to."""
    store = Location(snapshot.uri)
    live = live_shards(read_ledger(store, snapshot.id, snapshot.manifest, LIVE_COLUMNS), digest)
    columns = ["volume_id", *(SLICE_KEYS if aggregation is None else ()), "vector"]
    files = read_files(store, snapshot.id, snapshot.manifest)
    for file in stored_files(files, EMBEDDING_KINDS, recipe=digest, aggregation=aggregation):
        if file.key not in live:
            continue
        data = read_checked(store, file.path, file.sha256, file.size_bytes)
        table = read_parquet(data, columns, name=file.path).replace_schema_metadata(None)
        rows = live_rows(table, live[file.key].volumes)
        if rows.num_rows:
            yield rows
