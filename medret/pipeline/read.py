"""The first stage, in Ray tasks: the bytes of each object to uint8 slices."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.rows import SLICED, SOURCE, pixels_column
from medret.recipe import SliceRecipe
from medret.storage import is_store_failure
from medret.volume import Limits, SlicedVolume, read_volume


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
                    [*SOURCE, *SLICED, *(pa.field(pixels_column(s), pa.large_binary()) for s in self.sides_px)]
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
            **{pixels_column(side): [volume.pixels[side].tobytes() if volume else None] for side in self.sides_px},
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
