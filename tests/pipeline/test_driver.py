"""What the driver keeps of a stream, and how it waits for it."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from medret.embeddings.parquet import parquet_bytes
from medret.pipeline import batch_schema
from medret.pipeline.batch_schema import CANARIES, Gathered, PackedFacts, ipc_bytes
from medret.pipeline.store_state import groups, numbered
from medret.pipeline.stream import Pause
from medret.schemas import LEDGER, one_heap

ROWS = 24


class Steps(ExecutionCallback):
    """Counts the steps of the scheduling loop."""

    count = 0

    def on_execution_step(self, executor: object) -> None:
        Steps.count += 1


def slow(table: pa.Table) -> pa.Table:
    """Work that takes a while."""
    time.sleep(1.5)
    return table


def streamed(*callbacks: type) -> tuple[list[int], int]:
    """The rows that two stages return, and the steps that the loop took."""
    Steps.count = 0
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Steps, *callbacks]
    with DataContext.current(context):
        blocks = [pa.table({"id": np.arange(at, at + 8)}) for at in range(0, ROWS, 8)]
        dataset = ray.data.from_blocks(blocks)
        dataset = dataset.map_batches(slow, batch_format="pyarrow", batch_size=None, num_cpus=0.25)
        dataset = dataset.map_batches(slow, batch_format="pyarrow", batch_size=None, num_cpus=0.5)
        found = [row for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow") for row in batch["id"]]
    return [row.as_py() for row in found], Steps.count


@pytest.mark.ray
def test_a_loop_that_sleeps_returns_the_same_rows_in_fewer_steps(ray_session: None) -> None:
    streamed()  # so that both find processes
    rows, steps = streamed()
    assert streamed(Pause)[0] == rows == list(range(ROWS))
    assert Steps.count < 0.75 * steps


def test_arrow_gets_its_own_heap_back() -> None:
    before = pa.default_memory_pool().backend_name
    with one_heap():
        assert pa.default_memory_pool().backend_name == "system"
    assert pa.default_memory_pool().backend_name == before
    with pytest.raises(ValueError, match="stop"), one_heap():
        raise ValueError("stop")
    assert pa.default_memory_pool().backend_name == before


@pytest.mark.parametrize("most", [1, 7, 10_000])
def test_what_is_gathered_is_what_came(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_schema, "GATHERED_ROWS", most)
    rng, gathered, came = np.random.default_rng(0), Gathered(CANARIES), []
    for batch in range(9):
        tables = []
        for part in range(batch % 4):
            names = [f"{batch}-{part}-{row}" for row in range(int(rng.integers(0, 4)))]
            columns = {"volume_id": names, "recipe": ["r"] * len(names), "content_sha256": [None] * len(names)}
            tables.append(pa.table(columns | {"vectors": [rng.bytes(5) for _ in names]}, schema=CANARIES))
        gathered.add(pa.chunked_array([pa.array([ipc_bytes(table) for table in tables], pa.binary())]))
        came += tables
    assert gathered.table().equals(pa.concat_tables([CANARIES.empty_table(), *came]))


def rows_with(facts: list[str | None]) -> pa.Table:
    """Ledger rows with these facts."""
    rows = [
        {"volume_id": f"v{number:02d}", "uri": "u", "size_bytes": 1, "status": "embedded", "slices": 1, "facts": each}
        for number, each in enumerate(facts)
    ]
    return pa.Table.from_pylist(rows, LEDGER)


@given(st.data())
def test_packed_facts_come_back_in_any_order_and_beside_others(data: st.DataObject) -> None:
    text = st.none() | st.text("{}#1ä", max_size=8).map("{{{}".format)
    parts = [rows_with(facts) for facts in data.draw(st.lists(st.lists(text, max_size=5), max_size=4))]
    facts, stored = PackedFacts(), rows_with(['{"stored": true}', None])
    both = pa.concat_tables([stored, *parts])
    packed = pa.concat_tables([stored, *(facts.packed(part) for part in parts)])
    assert [text for text in packed["facts"].to_pylist()[2:] if text is not None and text.startswith("{")] == []
    order = pa.array(data.draw(st.lists(st.integers(0, both.num_rows - 1), max_size=9)), pa.int64())
    for rows in (slice(None), slice(1, 4), slice(0, 0)):
        assert facts.unpacked(packed[rows]).equals(both[rows])
    assert facts.unpacked(packed.take(order)).equals(both.take(order))


def test_a_file_does_not_tell_that_its_facts_were_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medret.embeddings.parquet.ROW_GROUP_ROWS", 3)
    facts, rows = PackedFacts(), rows_with([f'{{"shape": [{number}]}}' for number in range(8)])
    packed = pa.concat_tables([facts.packed(rows[:5]), facts.packed(rows[5:])])
    assert parquet_bytes(packed, facts.unpacked) == parquet_bytes(rows)


def test_groups_are_those_of_equal_rows() -> None:
    rng = np.random.default_rng(1)
    for rows in (0, 1, 50):
        sizes = rng.integers(10, 14, rows)
        texts = pa.chunked_array(
            [pa.array([("a", "b", "", None)[one] for one in rng.integers(0, 4, rows)], pa.string())]
        )
        group, size = groups(sizes, numbered(texts))
        pairs = list(zip(sizes.tolist(), texts.to_pylist(), strict=True))
        assert size.tolist() == [pairs.count(pair) for pair in pairs]
        assert len(set(zip(group.tolist(), pairs, strict=True))) == len(set(pairs)) == len(set(group.tolist()))


def test_numbers_of_many_chunks_take_little_more_than_the_values() -> None:
    texts = [f"{number % 9000:040d}" if number % 7 else None for number in range(10_000)]
    column = pa.chunked_array([texts[at : at + 20] for at in range(0, len(texts), 20)])
    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        found = numbered(column)
    finally:
        pa.set_memory_pool(usual)
    places = dict(zip(texts, found.tolist(), strict=True))
    assert found.tolist() == [places[text] for text in texts]
    assert len(set(places.values())) == len(places)
    assert pool.max_memory() < 8 * column.nbytes
