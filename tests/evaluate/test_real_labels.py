"""The definition of what is counted, on the labels of the real volumes; their vectors are made up."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret.embeddings import Slices, plane_codes
from medret.evaluate import Options, Selection, archive_queries, evaluate
from medret.search import open_snapshot


def test_what_is_counted_on_real_labels(shared_data: Path, stores: Any, tmp_path: Path) -> None:
    with (shared_data / "labels.csv").open(encoding="utf-8") as file:
        labels = sorted(csv.DictReader(file), key=lambda row: row["volume_id"])
    rng = np.random.default_rng(0)
    volumes, rows = [], []
    for label in labels:
        vector = rng.standard_normal((1, stores.DIM))
        unit = (vector / np.linalg.norm(vector)).astype(np.float16)
        one = np.ones(1, np.float32)
        axial, volume_id = plane_codes(["axial"]), label["volume_id"]
        volumes.append(Slices(unit, axial, np.ones(1, np.int32), one, one, one, volume_id=volume_id))
        values = {name: label[name] for name in ("subject", "modality", "body_region", "organ")}
        rows.append(stores.ledger_row(label["volume_id"], **values, metadata=[("dataset", label["dataset"])]))
    snapshot = open_snapshot(stores.make_store(tmp_path / "store", tuple(volumes), ledger=rows).uri)
    selection = Selection(aggregations=["mean"], indices=["exact"], modes=["volume"])
    found = evaluate(snapshot, archive_queries(snapshot), Options(selection=selection))
    counted = {(one.level, one.exclude): (one.counted, one.classes) for one in found.left_out}
    assert counted["organ", "subject"] == (156, 8)
    assert counted["organ", "dataset"] == (31, 4)
    assert counted["body_region", "dataset"] == (119, 4)
    assert any("organ follows from dataset" in text for text in found.warnings)
    for level, exclude in counted:  # vectors without meaning reach what chance reaches
        row = found.figure(found.leading, exclude, level, "micro", "mAP")
        assert row is not None
        assert row.value == pytest.approx(row.chance, abs=0.05)
