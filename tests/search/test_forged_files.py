"""Files of a store that somebody forged, every checksum made to fit: an answer or one line, never a crash."""

from __future__ import annotations

import io
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medret.embeddings.parquet import read_parquet
from medret.errors import CorruptError, MedretError, VersionError
from medret.index import IndexSettings
from medret.index.rows import ROW_FILE
from medret.search import open_snapshot
from medret.snapshot import read_manifest
from medret.storage import Location
from tests.search.forging import forge_file, forge_manifest, forge_rows, forge_table
from tests.search.opening import ID, everything, one_line, refusal, search_it, set_all, without

# --- E2, E3: index files ------------------------------------------------------------------------------------------


def _rows_file(change: Callable[[dict[str, Any]], None], **options: Any) -> Callable[[bytes], bytes]:
    """A row table whose columns were changed."""

    def changed(data: bytes) -> bytes:
        batch = pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)
        columns = {name: batch.column(name) for name in ROW_FILE.names}
        change(columns)
        made = pa.RecordBatch.from_arrays(list(columns.values()), schema=ROW_FILE)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, ROW_FILE, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_batch(made)
        return bytes(sink.getvalue())

    return changed


def _wild_offsets(columns: dict[str, Any]) -> None:
    ids = columns["volume_id"]
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[: len(ids) + 1].copy()
    offsets[1:-1] = 2**31 - 1
    columns["volume_id"] = pa.Array.from_buffers(pa.string(), len(ids), [None, pa.py_buffer(offsets), ids.buffers()[2]])


def _same_as(value: int) -> Callable[[dict[str, Any]], None]:
    def change(columns: dict[str, Any]) -> None:
        columns["same_as"] = pa.array([value] * len(columns["same_as"]), pa.int32())

    return change


@pytest.mark.parametrize("change", [_wild_offsets, _same_as(2**31 - 1), _same_as(-7), _same_as(1)])
def test_a_forged_row_table_is_one_line(store: Location, change: Callable[[dict[str, Any]], None]) -> None:
    """E2: it ended the process, took 16 GiB, or was a traceback."""
    forge_file(store, "rows", _rows_file(change))
    assert "is not a row table that medret writes" in refusal(store)
    everything(store)


def test_a_compressed_row_table_is_not_unpacked(store: Location) -> None:
    """E2, E7: pyarrow unpacks it to whatever size it names, as soon as its batch is asked for."""
    forge_file(store, "rows", _rows_file(lambda columns: None, compression="zstd"))
    assert "is compressed" in refusal(store)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "lsh"])
def test_the_sizes_in_an_index_file_are_checked_before_faiss_reads_it(store: Location, kind: str) -> None:
    """E3: any length, raised to 2^40 or lowered, is told by the file's own size; FAISS would take the memory."""
    rng = np.random.default_rng(3)
    original = next(path for path in store.files("indices") if f"/{kind}-" in path)
    sound = store.read(original)
    from medret.index import JUDGES

    file = Path(store.path("forged"))
    file.write_bytes(sound)
    JUDGES[kind](file)
    refused = 0
    for place in rng.integers(0, min(len(sound), 400), 200).tolist():
        forged = bytearray(sound)
        forged[place : place + 8] = (2**40 + 1).to_bytes(8, "little") if place % 2 else b"\xff" * 8
        file.write_bytes(forged[: len(sound)])
        try:
            JUDGES[kind](file)
        except CorruptError as error:
            one_line(error)
            refused += 1
    file.unlink()
    assert refused
    forge_file(store, kind, lambda data: data[:40] + b"\xff" * 8 + data[48:])
    refusal(store)
    everything(store)


@pytest.mark.parametrize(("codes", "mark"), [("fp16", b"IxSQ"), ("auto", b"Ixrr")])
def test_a_graph_whose_links_lead_out_of_it_is_refused(
    tmp_path: Path, store_maker: Any, volume_maker: Any, codes: str, mark: bytes
) -> None:
    """E3: FAISS follows a link to any address."""
    made = store_maker(tmp_path / "store", volume_maker(8), settings=IndexSettings(hnsw_m=8, hnsw_codes=codes))
    store = Location(made.uri)
    links = next(path for path in store.files("indices") if "/hnsw-" in path)
    sound = store.read(links)

    def wild(data: bytes) -> bytes:
        marked = data.rindex((0).to_bytes(4, "little"), 0, data.rindex(mark) - 20)
        return data[:marked] + (2**30).to_bytes(4, "little") + data[marked + 4 :]

    assert len(wild(sound)) == len(sound)
    forge_file(store, "hnsw", wild)
    assert "is not an index that medret writes" in refusal(store)


# --- E5, E7: manifests and tables ---------------------------------------------------------------------------------


def _nested(content: dict[str, Any]) -> bytes:
    deep = b"[" * 200_000 + b"]" * 200_000
    return json.dumps(content).encode().replace(b'"index_settings": {', b'"index_settings": {"deep": ' + deep + b", ")


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nested": _nested,
    "no recipes": lambda content: content.update(recipes=[]),
    "no model": lambda content: content["recipes"][0]["recipe"].pop("model"),
    "wide": lambda content: content["recipes"][0]["recipe"]["model"].update(dim=2**40),
    "no aggregations": lambda content: content.update(aggregations=[]),
    "no tables": lambda content: content.update(tables=[]),
    "table elsewhere": lambda content: content["tables"][0].update(path="../../../home/thesis.txt"),
    "created": lambda content: content.update(created="yesterday"),
    "not JSON": lambda content: b"{",
    "large": lambda content: b" " * (5 << 20) + json.dumps(content).encode(),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_forged_manifest_is_one_line_that_names_it(store: Location, change: Callable[[dict[str, Any]], Any]) -> None:
    """E5: tracebacks of RecursionError, KeyError and IndexError."""
    forge_manifest(store, change)
    assert "manifest.json" in refusal(store)
    everything(store)


def test_a_manifest_of_another_format_is_not_damaged(store: Location) -> None:
    """E5: it is another version's, as one with fields that this version does not know."""
    for change in (lambda content: content.update(format=2), lambda content: content.update(later=1)):
        forged = forge_manifest(store, change)
        with pytest.raises(VersionError, match="format that this version does not know"):
            read_manifest(store, forged)


def test_facts_that_are_no_json_are_one_line(store: Location) -> None:
    """E5: a traceback where the slices of a query are asked for in millimetres."""
    no_spacing = (
        '{"spacing_assumed": false, "spacing_mm": [1, 1, 0]}',
        '{"spacing_assumed": false, "spacing_mm": [1, NaN, 1]}',
    )
    for facts in ("{", "[]", '{"spacing_assumed": false}', "[" * 200_000, *no_spacing):
        forge_rows(store, "ledger", partial(set_all, name="facts", value=facts))
        everything(store)
        with pytest.raises(CorruptError, match="facts"):
            open_snapshot(store.uri)._contents.ledger.spacing_mm(ID)


def test_a_tablewithout_a_column_is_one_line(store: Location) -> None:
    """E3: a KeyError's traceback."""
    for kind, column in (("files", "shard"), ("ledger", "shards"), ("ledger", "volume_id")):
        live = store.read("CURRENT")
        forge_table(store, kind, partial(without, column=column))
        assert column in refusal(store)
        everything(store)
        store.write("CURRENT", live)


def _bomb(values: int, text: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(values, np.int32)), [text])
    pq.write_table(pa.table({"volume_id": one if text else pa.nulls(values, pa.bool_())}), buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("values", "length"), [(40_000_000, 0), (200_000, 1_000_000)])
def test_a_small_table_that_unpacks_to_much_is_refused_unread(store: Location, values: int, length: int) -> None:
    """E7: rows of one value, and one long text that every row repeats (200 GB), in a few kilobytes."""
    data = _bomb(values, "x" * length, compression="zstd")
    assert len(data) < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(CorruptError, match="unpack to"):
        read_parquet(data, name="tombstones.parquet")
    assert pa.total_allocated_bytes() - before < 1 << 26
    forge_table(store, "ledger", lambda table: data)
    refusal(store)
    everything(store)


def test_a_centre_of_any_size_is_refused_unread() -> None:
    """E7: NumPy would take memory for 2^40 values."""
    from medret.index import centre_of

    sound = io.BytesIO()
    np.save(sound, np.ones(32, np.float32))
    assert centre_of(sound.getvalue(), "centre", 32).shape == (32,)
    wide = sound.getvalue().replace(b"(32,)", b"(1099511627776,)".ljust(5))
    tracemalloc.start()
    for wrong in (wide, sound.getvalue()[:-4], sound.getvalue() + b"1234", b"", b"\x93NUMPY\x01\x00"):
        with pytest.raises(CorruptError, match="centre"):
            centre_of(wrong, "centre", 32)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_two_hundred_mutations_end_in_an_answer_or_one_line(store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """E2, E3, E5, E7: bytes flipped and values swapped, every checksum made to fit; no crash, no traceback."""
    rng = np.random.default_rng(7)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    live = store.read("CURRENT")
    kinds = ["files", "ledger", "exact", "hnsw", "lsh", "rows"]
    odd: list[Any] = [None, "", "x" * 5000, "../..", -1, 2**40, 0.5, [], {}, [[]], "\x00", True]

    def flipped(data: bytes) -> bytes:
        made = bytearray(data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 4))):
            made[place] ^= 1 << int(rng.integers(0, 8))
        return bytes(made)

    def swapped(content: dict[str, Any]) -> None:
        holder: Any = content
        while True:
            key = rng.choice(list(holder)) if isinstance(holder, dict) else int(rng.integers(0, len(holder)))
            if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
                holder = holder[key]
                continue
            holder[key] = odd[int(rng.integers(0, len(odd)))]
            return

    for number in range(200):
        store.write("CURRENT", live)
        kind = kinds[number % len(kinds)]
        if number % 3 == 0:
            forged = forge_manifest(store, swapped)
        elif kind in ("files", "ledger"):
            tables = read_manifest(store, live.decode().strip()).tables
            entry = next(table for table in tables if table.kind == kind)
            forged = forge_table(store, kind, partial(lambda data, table: flipped(data), store.read(entry.path)))
        else:
            forged = forge_file(store, kind, flipped, None if number % 2 else "mean")
        try:
            search_it(store) if number % 10 else everything(store)
        except MedretError as error:
            one_line(error)
        shutil.rmtree(store.path(f"snapshots/{forged}"))
