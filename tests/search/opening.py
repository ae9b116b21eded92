"""Every way to read a store, for tests of stores that somebody forged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from medret.errors import CorruptError, MedretError
from medret.pipeline.store_state import read_base
from medret.search import open_snapshot
from medret.snapshot import read_journal, verify_store
from medret.snapshot.lease import leased
from medret.snapshot.publish import history
from medret.snapshot.removal import gc
from medret.storage import Location

ID = "synthetic/liver_0000.nii.gz"


def everything(store: Location) -> None:
    """Every way to read a store, each of which works or says in one line what is wrong."""
    ways: list[Callable[[], object]] = [
        lambda: history(store),
        lambda: verify_store(store),
        lambda: read_base(store),
        lambda: read_journal(store),
        lambda: sweep_it(store),
        lambda: search_it(store),
    ]
    for way in ways:
        try:
            way()
        except MedretError as error:
            one_line(error)


def one_line(error: MedretError) -> None:
    """What people see of an error is one line."""
    assert "\n" not in str(error), error


def sweep_it(store: Location) -> None:
    with leased(store, "a test") as lease:
        gc(store, lease, keep=1, older_than=timedelta(0), dry_run=True)


def search_it(store: Location) -> None:
    snapshot = open_snapshot(store.uri)
    snapshot.labels()
    for index, mode in (("hnsw", "volume"), ("lsh", "late"), ("exact", "vote")):
        snapshot.search(ID, 3, index=index, mode=mode, slices="0mm:1mm" if mode == "late" else None)


def refusal(store: Location) -> str:
    """The one line with which a search is refused."""
    with pytest.raises(CorruptError) as caught:
        search_it(store)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_all(rows: list[dict[str, Any]], name: str, value: object) -> None:
    for row in rows:
        row[name] = value


def without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns([column])
