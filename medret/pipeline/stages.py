"""The three stages of the stream: read and slice (tasks), embed (one actor pool a model), reduce and write (tasks).

One row is one volume from the first stage to the last: nothing is shuffled, and a failed one stays a row with a code.
The tables between the stages are private to this file; what reaches disk has its schema in medret.schemas.

    read    in:  volume_id, uri, size_bytes, etag, mtime, modality
            out: + content_sha256, code, reason, facts, planes, positions, relative, positions_mm, pixels_<side>...
    embed   out: + vectors_<recipe digest>, raw model outputs (n, dim) float32; the last user of pixels_<side> drops it
    write   out: one row a shard: its part of the ledger and of the file table, as Arrow IPC
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from medret.embeddings import Aggregation, EmbeddedVolume, slice_table, unit_slices, volume_table
from medret.embeddings.shards import parquet_bytes
from medret.errors import QuarantineCode, VolumeError
from medret.models import ModelSpec, Weights, stage_weights, staged_weights
from medret.recipe import Recipe, SliceRecipe
from medret.schemas import FILES, LEDGER
from medret.storage import NAME_DIGITS, Location, WrittenFile, is_store_failure
from medret.volume import Limits, SlicedVolume, read_volume

SOURCE = pa.schema(
    [
        pa.field("volume_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.string()),
        pa.field("modality", pa.string()),
    ]
)

_SLICED = [
    pa.field("content_sha256", pa.string()),
    pa.field("code", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("facts", pa.string()),
    pa.field("planes", pa.list_(pa.string())),
    pa.field("positions", pa.list_(pa.int32())),
    pa.field("relative", pa.list_(pa.float32())),
    pa.field("positions_mm", pa.list_(pa.float32())),
]


# --- read ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadStage:
    """Bytes of each object to uint8 slices at every side that a model of the run wants: one decode a volume."""

    recipe: SliceRecipe
    sides_px: tuple[int, ...]
    limits: Limits
    counter: Any

    def run(self, table: pa.Table) -> Iterator[pa.Table]:
        """table: SOURCE columns; yields one single-row table a volume, so that a large one is passed on early."""
        started = time.monotonic()
        for row, content in zip(table.to_pylist(), _fetch(table["uri"].to_pylist()), strict=True):
            columns, n = self._read(row, content)
            now = time.monotonic()
            size = len(content) if isinstance(content, bytes) else 0
            self.counter.add.remote("read", 1, n, size, now - started)
            yield pa.table(
                {**{name: [row[name]] for name in SOURCE.names}, **columns},
                schema=pa.schema(
                    [*SOURCE, *_SLICED, *(pa.field(_pixels(s), pa.large_binary()) for s in self.sides_px)]
                ),
            )
            started = time.monotonic()

    def _read(self, row: dict[str, Any], content: bytes | Exception) -> tuple[dict[str, list[Any]], int]:
        sha256, volume = None, None
        code: QuarantineCode | None = None
        reason: str | None = None
        try:
            if isinstance(content, Exception):
                raise VolumeError(QuarantineCode.UNREADABLE, f"{type(content).__name__}: {content}")
            sha256 = hashlib.sha256(content).hexdigest()
            volume = read_volume(
                content, row["volume_id"], self.recipe, self.sides_px, modality=row["modality"], limits=self.limits
            )
        except VolumeError as error:
            code, reason = error.code, error.reason
        except MemoryError:
            code, reason = QuarantineCode.TOO_LARGE, "decoding it exhausted the memory of a read task"
        columns: dict[str, list[Any]] = {
            "content_sha256": [sha256],
            "code": [code],
            "reason": [reason],
            **_sliced_columns(volume),
            **{_pixels(side): [volume.pixels[side].tobytes() if volume else None] for side in self.sides_px},
        }
        return columns, len(volume.slices) if volume else 0


def _sliced_columns(volume: SlicedVolume | None) -> dict[str, list[Any]]:
    slices = volume.slices if volume else ()
    return {
        "facts": [json.dumps(volume.facts.to_json()) if volume else None],
        "planes": [[ref.plane for ref in slices]],
        "positions": [[ref.position for ref in slices]],
        "relative": [[ref.relative for ref in slices]],
        "positions_mm": [[ref.position_mm for ref in slices]],
    }


def _fetch(uris: list[str]) -> Iterator[bytes | Exception]:
    """Each object's bytes, or why they could not be had. Remote objects of one block are fetched together."""
    fs, _ = fsspec.core.url_to_fs(uris[0])
    paths = [fs._strip_protocol(uri) for uri in uris]
    if not fs.async_impl:  # a local disk: one at a time keeps one file in memory
        yield from (_cat_one(fs, path) for path in paths)
        return
    contents = fs.cat(paths, on_error="return") if len(paths) > 1 else {paths[0]: _cat_one(fs, paths[0])}
    for path in paths:
        yield contents.pop(path)


def _cat_one(fs: Any, path: str) -> bytes | Exception:
    try:
        data: bytes = fs.cat_file(path)
    except Exception as error:
        if is_store_failure(error):
            return error
        raise
    return data


# --- embed -----------------------------------------------------------------------------------------------------


class EmbedStage:
    """One model in one actor: slices of several volumes in one stream of equally shaped batches."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        contents: Mapping[str, Any],  # role -> object reference of the file's bytes, fetched where it is not staged yet
        recipe: Recipe,
        *,
        device: str,
        batch_size: int,
        threads: int,
        drop_pixels: bool,
        counter: Any,
    ) -> None:
        from medret.models import Encoder  # torch: only where a model runs, not in every reading and writing worker

        staged = staged_weights(weights) or stage_weights(
            weights, {role: ray.get(ref) for role, ref in contents.items()}
        )
        self._encoder = Encoder(
            spec, staged, device=device, precision=recipe.model.precision, batch_size=batch_size, threads=threads
        )
        self._recipe = recipe
        self._drop_pixels = drop_pixels
        self._counter = counter

    def __call__(self, table: pa.Table) -> pa.Table:
        """Adds the model's outputs to each row; rows with a code get none."""
        started = time.monotonic()
        side = self._recipe.model.side_px
        column = table[_pixels(side)]
        images = [_image_stack(cell.as_buffer(), side) for cell in column if cell.is_valid]
        stack = np.concatenate(images) if images else np.empty((0, side, side), np.uint8)
        raw = np.ascontiguousarray(self._encoder.embed(stack), dtype=np.float32)
        vectors, at = [], 0
        for cell in column:
            n = len(cell.as_buffer()) // (side * side) if cell.is_valid else 0
            vectors.append(raw[at : at + n].tobytes() if cell.is_valid else None)
            at += n
        if self._drop_pixels:
            table = table.drop_columns(_pixels(side))
        name = self._recipe.model.name
        self._counter.add.remote(f"embed {name}", table.num_rows, len(stack), stack.nbytes, time.monotonic() - started)
        return table.append_column(_vectors(self._recipe), pa.array(vectors, pa.large_binary()))


def _image_stack(buffer: pa.Buffer, side: int) -> NDArray[np.uint8]:
    return np.frombuffer(buffer, np.uint8).reshape(-1, side, side)


# --- reduce and write ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WriteStage:
    """Unit slice vectors and volume vectors of a group of volumes to one set of Parquet files."""

    store: Location
    recipes: tuple[Recipe, ...]
    aggregations: tuple[Aggregation, ...]
    counter: Any

    def run(self, table: pa.Table) -> pa.Table:
        """Writes the shard and returns one row: `ledger` (schemas.LEDGER without labels) and `files`, as Arrow IPC."""
        started = time.monotonic()
        rows = table.to_pylist()
        embedded: dict[str, list[EmbeddedVolume]] = {recipe.digest: [] for recipe in self.recipes}
        for row in rows:
            if row["code"] is None:
                self._reduce(row, embedded)
        kept = [(row["volume_id"], row["content_sha256"]) for row in rows if row["code"] is None]
        shard = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:NAME_DIGITS]
        files = self._write(embedded, shard) if kept else FILES.empty_table()
        ledger = pa.Table.from_pylist([_ledger_row(row, shard) for row in rows], schema=LEDGER)
        slices = sum(len(row["positions"]) for row in rows if row["code"] is None)
        self.counter.add.remote("write", len(rows), slices, 0, time.monotonic() - started)
        return pa.table({"ledger": [ipc_bytes(ledger)], "files": [ipc_bytes(files)]})

    def _reduce(self, row: dict[str, Any], embedded: dict[str, list[EmbeddedVolume]]) -> None:
        """Append the row's unit vectors for every recipe, or none of them and mark the row."""
        volumes = {}
        try:
            for recipe in self.recipes:
                raw = np.frombuffer(row[_vectors(recipe)], np.float32).reshape(-1, recipe.model.dim)
                vectors, norms = unit_slices(raw)
                volumes[recipe.digest] = EmbeddedVolume(
                    row["volume_id"],
                    row["planes"],
                    np.array(row["positions"], np.int32),
                    np.array(row["relative"], np.float32),
                    np.array(row["positions_mm"], np.float32),
                    vectors,
                    norms,
                )
        except VolumeError as error:
            row["code"], row["reason"] = error.code, f"{recipe.model.name}: {error.reason}"
            return
        for digest, volume in volumes.items():
            embedded[digest].append(volume)

    def _write(self, embedded: dict[str, list[EmbeddedVolume]], shard: str) -> pa.Table:
        files = []
        for recipe in self.recipes:
            volumes, dim, digest = embedded[recipe.digest], recipe.model.dim, recipe.digest
            tables: list[tuple[str, str | None, pa.Table]] = [("slices", None, slice_table(volumes, dim, digest))]
            tables += [("volumes", a.name, volume_table(volumes, a, dim, digest)) for a in self.aggregations]
            for kind, aggregation, content in tables:
                written = self.store.write_named(f"embeddings/{digest}", kind, ".parquet", parquet_bytes(content))
                files.append(file_row(written, kind, content.num_rows, digest, aggregation, shard))
        return pa.Table.from_pylist(files, schema=FILES)


def file_row(
    written: WrittenFile, kind: str, rows: int, recipe: str | None, aggregation: str | None, shard: str | None
) -> dict[str, Any]:
    """A row of schemas.FILES."""
    return {
        "path": written.path,
        "kind": kind,
        "sha256": written.sha256,
        "size_bytes": written.size_bytes,
        "rows": rows,
        "recipe": recipe,
        "aggregation": aggregation,
        "shard": shard,
    }


def _ledger_row(row: dict[str, Any], shard: str) -> dict[str, Any]:
    ok = row["code"] is None
    return {
        **{name: row[name] for name in ("volume_id", "uri", "size_bytes", "etag", "mtime", "content_sha256", "facts")},
        "status": "embedded" if ok else "quarantined",
        "code": row["code"],
        "reason": row["reason"],
        "slices": len(row["positions"]) if ok else 0,
        "shard": shard if ok else None,
    }


# --- shared ----------------------------------------------------------------------------------------------------


def ipc_bytes(table: pa.Table) -> bytes:
    """A table as one Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_ipc(cells: Sequence[bytes], schema: pa.Schema) -> pa.Table:
    """Tables made by `ipc_bytes`, one below the other."""
    tables = [pa.ipc.open_stream(cell).read_all() for cell in cells]
    return pa.concat_tables([schema.empty_table(), *tables])


def _pixels(side_px: int) -> str:
    return f"pixels_{side_px}"


def _vectors(recipe: Recipe) -> str:
    return f"vectors_{recipe.digest}"
