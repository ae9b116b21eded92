"""The first stage, in Ray tasks: the bytes of each object to uint8 slices."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.archive import object_etag, object_mtime
from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.progress import Tally
from medret.pipeline.rows import SLICED, SOURCE, STOPPED, pixels_column
from medret.recipe import SliceRecipe
from medret.retry import retrying
from medret.storage import is_store_failure, open_filesystem
from medret.volume import Limits, SlicedVolume, read_volume

READ_AT_ONCE = 4  # objects of an object store, side by side: as many are in memory
READINGS = 3  # of an object that someone is writing to


@dataclass(frozen=True)
class ReadStage:
    """Bytes of each object to uint8 slices at every side that a model of the run wants: one decode a volume."""

    recipe: SliceRecipe
    sides_px: tuple[int, ...]
    limits: Limits
    counter: Any

    def run(self, table: pa.Table) -> Iterator[pa.Table]:
        """table: SOURCE columns; yields one single-row table a volume, so that a large one is passed on early."""
        tally = Tally(self.counter, "read")
        fields = [*SOURCE, *SLICED, *(pa.field(pixels_column(side), pa.large_binary()) for side in self.sides_px)]
        schema = pa.schema(fields)
        started = time.monotonic()
        for row, content in _with_contents(table.to_pylist()):
            if tally.is_stopping():
                stopped = {name: [None] for name in schema.names} | {name: [row[name]] for name in SOURCE.names}
                yield pa.table(stopped | {"code": [STOPPED]}, schema=schema)
                continue
            columns, n = self._read(row, content)
            size = len(content) if isinstance(content, bytes) else 0
            tally.add(1, n, size, time.monotonic() - started)
            yield pa.table({**{name: [row[name]] for name in SOURCE.names}, **columns}, schema=schema)
            started = time.monotonic()
        tally.report()

    def _read(self, row: dict[str, Any], content: bytes | Exception) -> tuple[dict[str, Any], int]:
        """The row's further columns and how many slices it has."""
        sha256, volume = None, None
        code: QuarantineCode | None = None
        reason: str | None = None
        try:
            if isinstance(content, VolumeError):
                raise content
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
        columns: dict[str, Any] = {
            "content_sha256": [sha256],
            "code": [code],
            "reason": [reason],
            **_sliced_columns(volume),
            **{pixels_column(side): _binary(volume.pixels[side] if volume else None) for side in self.sides_px},
        }
        return columns, len(volume.slices) if volume else 0


def _binary(pixels: NDArray[np.uint8] | None) -> pa.Array:
    """One row that holds the array's own memory, not a copy of it; null for None."""
    if pixels is None:
        return pa.nulls(1, pa.large_binary())
    ends = pa.py_buffer(np.array([0, pixels.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(pixels)])


def _sliced_columns(volume: SlicedVolume | None) -> dict[str, list[Any]]:
    slices = volume.slices if volume else ()
    return {
        "facts": [json.dumps(volume.facts.to_json()) if volume else None],
        "planes": [[ref.plane for ref in slices]],
        "positions": [[ref.position for ref in slices]],
        "relative": [[ref.relative for ref in slices]],
        "positions_mm": [[ref.position_mm for ref in slices]],
    }


def _with_contents(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes | Exception]]:
    """Each row with its object's bytes, or why they could not be had.

    Size, etag and mtime of a row become those of the object that was read, if it was replaced since it was listed.
    """
    fs, _ = open_filesystem(rows[0]["uri"])
    at_once = READ_AT_ONCE if fs.async_impl else 1  # a local disk: one at a time keeps one file in memory
    for at in range(0, len(rows), at_once):
        group = rows[at : at + at_once]
        paths = [fs._strip_protocol(row["uri"]) for row in group]
        together: dict[str, Any] = fs.cat(paths, on_error="return") if len(paths) > 1 else {}
        for row, path in zip(group, paths, strict=True):
            yield row, _steady(fs, path, row, together.pop(path, None))


def _steady(fs: Any, path: str, row: dict[str, Any], content: Any) -> bytes | Exception:
    """Bytes of an object that was the same before and after they were read."""
    try:
        for _ in range(READINGS):
            data = content if isinstance(content, bytes) else retrying(lambda: fs.cat_file(path))
            content = None
            found = _facts(retrying(lambda: _info(fs, path)))
            if _is_as_listed(found, row) and len(data) == found[0]:
                return bytes(data)
            row["size_bytes"], row["etag"], row["mtime"] = found
    except Exception as error:
        if is_store_failure(error):
            return error
        raise
    return VolumeError(
        QuarantineCode.CHANGED_WHILE_READING, f"it was written to during each of {READINGS} readings; last {found}"
    )


def _is_as_listed(found: tuple[int, str | None, str | None], row: dict[str, Any]) -> bool:
    """By the etag where there is one: some stores list times with fractions of a second that they do not give later."""
    size, etag, mtime = found
    return bool(size == row["size_bytes"] and (etag == row["etag"] if etag else mtime == row["mtime"]))


def _info(fs: Any, path: str) -> dict[str, Any]:
    if fs.async_impl:
        fs.invalidate_cache(fs._parent(path))  # noqa: SLF001  # what the store says now, not when it was listed
    found: dict[str, Any] = fs.info(path)
    return found


def _facts(detail: dict[str, Any]) -> tuple[int, str | None, str | None]:
    return int(detail.get("size") or 0), object_etag(detail), object_mtime(detail)
