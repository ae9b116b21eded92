from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medret.errors import UsageError
from medret.search import open_snapshot
from medret.search.ledger import mask_of, take_or_null


def test_labels_are_one_table_in_volume_order(made_store: Any) -> None:
    table = open_snapshot(made_store.uri).labels()
    assert table.column_names == ["volume_id", "uri", "subject", "modality", "body_region", "organ", "source"]
    assert table["volume_id"].to_pylist() == made_store.ids
    assert set(table["organ"].to_pylist()) == {"Liver", "Lung", "Brain"}  # the label, not the metadata of that name
    assert table["source"].to_pylist() == ["made up"] * 30
    assert table["body_region"].null_count == 30


def test_metadata_that_some_volumes_lack(tmp_path: Path, store_maker: Callable[..., Any], made_store: Any) -> None:
    ids = made_store.ids[:4]
    metadata = [[("site", "A"), ("kV", "120")], None, [], [("site", "B")]]
    ledger = [
        {"volume_id": one, "uri": one, "size_bytes": 1, "status": "embedded", "slices": 6, "metadata": own}
        for one, own in zip(ids, metadata, strict=True)
    ]
    ledger.insert(2, {"volume_id": f"{ids[1]}.bad", "uri": "x", "size_bytes": 0, "status": "quarantined", "slices": 0,
                      "metadata": [("site", "C")]})  # fmt: skip
    table = open_snapshot(store_maker(tmp_path / "store", made_store.volumes[:4], ledger=ledger).uri).labels()
    assert table["volume_id"].to_pylist() == ids
    assert table["site"].to_pylist() == ["A", None, None, "B"]
    assert table["kV"].to_pylist() == ["120", None, None, None]


def test_rank_is_search_without_labels(made_store: Any) -> None:
    snapshot = open_snapshot(made_store.uri)
    queries = [snapshot.resolve(one) for one in made_store.ids[:3]]
    ranked = snapshot.rank(queries, 30, excluded=[{one} for one in made_store.ids[:3]])
    hits = snapshot.search_many(made_store.ids[:3], 30, index="exact", exclude="self")
    assert [[one.volume_id for one in own] for own in ranked] == [[hit.volume_id for hit in own] for own in hits]
    assert [len(own) for own in ranked] == [29, 29, 29]
    with pytest.raises(UsageError, match="index 'ivf' is not in snapshot"):
        snapshot.rank(queries, 3, index="ivf")


def test_arrow_to_numpy_and_back() -> None:
    assert mask_of(pa.array([True, None, False, True])).tolist() == [True, False, False, True]
    assert mask_of(pa.array([], pa.bool_())).tolist() == []
    picked = take_or_null(pa.array(["a", "b"]), np.array([1, -1, 0], np.int64))
    assert picked.to_pylist() == ["b", None, "a"]
