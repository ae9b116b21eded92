"""The first stage, in Ray tasks: the bytes of each object to uint8 slices."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.batch_schema import SLICED, SOURCE, STOPPED, pixels_column
from medret.pipeline.counter import Tally
from medret.pipeline.deadly import ended_if_hung, surviving
from medret.recipe import SliceRecipe
from medret.storage import Identity, StoredObject, in_words
from medret.volume import Limits, SlicedVolume, read_judged, read_volume

READ_AT_ONCE = 4  # objects of an object store, side by side: as many are in memory
READINGS = 3  # of an object that someone is writing to

Content = bytes | VolumeError


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
        for row, content in surviving(table.to_pylist(), lambda rows: _with_contents(rows, self.limits), tally):
            if tally.is_stopping():
                stopped = {name: [None] for name in schema.names} | {name: [row[name]] for name in SOURCE.names}
                yield pa.table(stopped | {"code": [STOPPED]}, schema=schema)
                continue
            with ended_if_hung():
                columns, n = self._read(row, content)
            size = len(content) if isinstance(content, bytes) else 0
            tally.add(1, n, size, time.monotonic() - started)
            yield pa.table({**{name: [row[name]] for name in SOURCE.names}, **columns}, schema=schema)
            started = time.monotonic()
        tally.report()

    def _read(self, row: dict[str, Any], content: Content) -> tuple[dict[str, Any], int]:
        """The row's further columns and how many slices it has."""
        sha256, volume = None, None
        code: QuarantineCode | None = None
        reason: str | None = None
        try:
            if isinstance(content, VolumeError):
                raise content
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
        "positions": [[ref.slice_index for ref in slices]],
        "relative": [[ref.relative_position for ref in slices]],
        "positions_mm": [[ref.position_mm for ref in slices]],
    }


def _with_contents(rows: Sequence[dict[str, Any]], limits: Limits) -> Iterator[tuple[dict[str, Any], Content]]:
    """Each row with its object's bytes, or why they could not be had.

    Size, etag and mtime of a row become those of the object that was read, if it was replaced since it was listed.
    """
    if not rows or StoredObject(rows[0]["uri"]).is_local:  # one at a time: one file is in memory
        yield from ((row, _steady(row, limits)) for row in rows)
        return
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for at in range(0, len(rows), READ_AT_ONCE):
            group = rows[at : at + READ_AT_ONCE]
            contents = list(pool.map(lambda row: _steady(row, limits), group))
            while contents:
                yield group[-len(contents)], contents.pop(0)


def _steady(row: dict[str, Any], limits: Limits) -> Content:
    """Bytes of an object that was the same before and after they were read, or why it has none."""
    try:
        source = StoredObject(row["uri"])
        for _ in range(READINGS):
            before = Identity(row["size_bytes"], row["etag"], row["mtime"])
            content: Content
            try:
                content = read_judged(source, before.size_bytes, limits)
            except VolumeError as refusal:
                content = refusal
            found = source.identity()
            if found.is_same(before) and (isinstance(content, VolumeError) or len(content) == found.size_bytes):
                return content
            row |= asdict(found)
    except MemoryError:
        return VolumeError(
            QuarantineCode.TOO_LARGE, f"reading its {row['size_bytes']} bytes exhausted the memory of a read task"
        )
    except Exception as error:  # noqa: BLE001  # whatever a filesystem's library raises: it is this object's alone
        return VolumeError(QuarantineCode.UNREADABLE, f"{type(error).__name__}: {in_words(error)}")
    return VolumeError(
        QuarantineCode.CHANGED_WHILE_READING, f"it was written to during each of {READINGS} readings; last {found}"
    )
