"""The first stage, in Ray tasks: turn the bytes of each object into slices.

Ray repeats a task whose process was killed. When such a task begins again, it reads one volume at a time and tells the
counter before and after each: the one that was begun and never ended killed the process. A volume that killed its
reader DEATHS times is quarantined; the others are read.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medret.errors import QuarantineCode, VolumeError
from medret.pipeline.batch_schema import SLICED, SOURCE, STOPPED, pixels_column
from medret.pipeline.counter import MOST_BEGINNINGS, Tally
from medret.recipe import Images, SliceRecipe
from medret.storage import Identity, add_options, given_options, in_words
from medret.volume import Limits, SlicedVolume, VolumeSource, content_sha256, read_volume, size_of
from medret.volume.content import Content as VolumeContent
from medret.volume.previews import make_previews

READ_AT_ONCE = 4  # objects read from an object store in parallel, all in memory; of a series, its parts are
READINGS = 3  # attempts to read an object that someone is writing to
DEATHS = 2  # of a reader that read this volume alone; the task had died once before, with others
HANG_S = 900.0  # to fetch a group of objects or to decode one; a process that takes longer ends itself

Content = VolumeContent | VolumeError
Contents = Iterator[tuple[dict[str, Any], Content]]


@dataclass(frozen=True)
class ReadStage:
    """Turns the bytes of each object into the images of every model of the run. Decodes each volume once.

    hidden: names of labels in tags that are not stored. previews: per volume, made from its plain images of
    `preview_side` px.
    """

    recipe: SliceRecipe
    images: tuple[Images, ...]
    limits: Limits
    counter: Any
    hidden: frozenset[str] = frozenset()
    previews: int = 0
    preview_side: int = 0
    storage_options: Mapping[str, Mapping[str, Any]] = field(default_factory=given_options, repr=False)

    def run(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield one single-row table per volume, so that a large one moves on early. table: SOURCE columns.

        Once the run is stopping, yields the rows that are left as one table, unread.
        """
        add_options(self.storage_options)
        tally = Tally(self.counter, "read")
        fields = [*SOURCE, *SLICED, *(pa.field(pixels_column(each), pa.large_binary()) for each in self.images)]
        schema = pa.schema(fields)
        started, done = time.monotonic(), 0
        stopping = tally.is_stopping()
        found = surviving(table.to_pylist(), lambda rows: _with_contents(rows, self.limits), tally)
        while not stopping and (each := next(found, None)):
            row, content = each
            with ended_if_hung():
                columns, n = self._read(row, content)
            size = 0 if isinstance(content, VolumeError) else size_of(content)
            tally.add(1, n, size, time.monotonic() - started)
            yield pa.table({**{name: [row[name]] for name in SOURCE.names}, **columns}, schema=schema)
            started, done = time.monotonic(), done + 1
            stopping = tally.is_stopping()
        if done < table.num_rows:
            yield _stopped(table.slice(done), schema)
        tally.report()

    def _read(self, row: dict[str, Any], content: Content) -> tuple[dict[str, Any], int]:
        """The columns that reading adds to the row, and the number of slices."""
        sha256, volume = None, None
        code: QuarantineCode | None = None
        reason: str | None = None
        try:
            if isinstance(content, VolumeError):
                raise content
            sha256 = content_sha256(content)
            drawn = (*self.images, self.preview_side) if self.previews and not row["canary"] else self.images
            volume = read_volume(
                content, row["volume_id"], self.recipe, drawn, modality=row["modality"], limits=self.limits
            )
        except VolumeError as error:
            code, reason = error.code, error.reason
        except MemoryError:
            code, reason = QuarantineCode.TOO_LARGE, "decoding it exhausted the memory of a read task"
        columns: dict[str, Any] = {
            "content_sha256": [sha256],
            "code": [code],
            "reason": [reason],
            "found": [_found(volume, self.hidden) if volume else None],
            **_sliced_columns(volume),
            "previews": [self._previews(volume) if volume and self.previews and not row["canary"] else None],
            **{pixels_column(each): _binary(volume.pixels[each] if volume else None) for each in self.images},
        }
        return columns, len(volume.slices) if volume else 0

    def _previews(self, volume: SlicedVolume) -> list[dict[str, Any]]:
        """The cell of a volume's previews: they are made here, where its pixels are, and not decoded again for them."""
        made = make_previews(volume.slices, volume.pixels[self.preview_side], self.previews)
        return [{"plane": each.plane, "position": each.slice_index, "image": each.image} for each in made]


def _stopped(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows that a run that is stopping does not read, without their objects being opened. rows: SOURCE."""
    columns = {name: pa.nulls(rows.num_rows, schema.field(name).type) for name in schema.names}
    codes = pa.repeat(pa.scalar(STOPPED), rows.num_rows)
    return pa.table(columns | {name: rows[name] for name in SOURCE.names} | {"code": codes}, schema=schema)


def _found(volume: SlicedVolume, hidden: frozenset[str]) -> list[tuple[str, str]]:
    """The labels in the volume's own tags, by name, as Arrow takes a map."""
    return sorted((name, text) for name, text in volume.labels.items() if name not in hidden and text)


def _binary(pixels: NDArray[Any] | None) -> pa.Array:
    """A one-row column over the memory of the array, without a copy; null for None."""
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
        "sources": [[ref.source for ref in slices]],
    }


def _with_contents(rows: Sequence[dict[str, Any]], limits: Limits) -> Iterator[tuple[dict[str, Any], Content]]:
    """Each row with the content of its volume, or with the reason why it cannot be read.

    If an object was replaced since the listing, its row gets size, etag and mtime of what was read.
    """
    if not rows or _source_of(rows[0]).is_local:  # one after the other: one file in memory
        yield from ((row, _steady(row, limits)) for row in rows)
        return
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for group in _groups(rows):
            contents = list(pool.map(lambda row: _steady(row, limits), group))
            while contents:
                yield group[-len(contents)], contents.pop(0)


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """What is read side by side: a few objects, or the parts of one series."""
    group: list[dict[str, Any]] = []
    for row in rows:
        if group and (row["parts"] is not None or group[0]["parts"] is not None or len(group) == READ_AT_ONCE):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _source_of(row: dict[str, Any]) -> VolumeSource:
    return VolumeSource(row["uri"], row["parts"], None if row["names"] is None else tuple(row["names"]))


def _steady(row: dict[str, Any], limits: Limits) -> Content:
    """The content of a volume that did not change while it was read, or the reason why it cannot be used."""
    try:
        source = _source_of(row)
        for _ in range(READINGS):
            before = Identity(row["size_bytes"], row["etag"], row["mtime"])
            content: Content
            try:
                content = source.read(before.size_bytes, limits)
            except VolumeError as refusal:
                content = refusal
            found = source.identity()
            if found.is_same(before) and (isinstance(content, VolumeError) or size_of(content) == found.size_bytes):
                return content
            row |= asdict(found)
    except MemoryError:
        return VolumeError(
            QuarantineCode.TOO_LARGE, f"reading its {row['size_bytes']} bytes exhausted the memory of a read task"
        )
    except Exception as error:  # noqa: BLE001  # whatever a filesystem library raises concerns this object alone
        return VolumeError(QuarantineCode.UNREADABLE, f"{type(error).__name__}: {in_words(error)}")
    return VolumeError(
        QuarantineCode.CHANGED_WHILE_READING, f"it was written to during each of {READINGS} readings; last {found}"
    )


@contextmanager
def ended_if_hung() -> Iterator[None]:
    """End this process if the block takes longer than HANG_S, even if native code never returns."""
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def surviving(
    rows: Sequence[dict[str, Any]], contents: Callable[[Sequence[dict[str, Any]]], Contents], tally: Tally
) -> Contents:
    """Each row with the bytes of its object, or with the reason for its quarantine. contents: reads several rows."""
    volumes = [row["volume_id"] for row in rows]
    if tally.begin(volumes, most=DEATHS * len(rows) + MOST_BEGINNINGS) == 1:
        yield from _watched(contents(rows))
    else:
        for row in rows:
            deaths, seconds = tally.open(row["volume_id"])
            if deaths >= DEATHS:
                yield row, _refusal(deaths, seconds)
            else:
                yield from _watched(contents([row]))
            tally.close(row["volume_id"])
    tally.done(volumes)


def _watched(found: Contents) -> Contents:
    while True:
        with ended_if_hung():
            each = next(found, None)
        if each is None:
            return
        yield each


def _refusal(deaths: int, seconds: float) -> VolumeError:
    if seconds >= HANG_S:
        reason = f"reading it did not end within {HANG_S:g} s, {deaths} times; see whether its store answers"
        return VolumeError(QuarantineCode.UNREADABLE, reason)
    reason = (
        f"the process that read it was killed, {deaths} times, as a machine does that runs out of memory; give workers "
        "more memory, or lower --max-volume-gib"
    )
    return VolumeError(QuarantineCode.TOO_LARGE, reason)
