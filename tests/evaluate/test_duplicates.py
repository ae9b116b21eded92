from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret.errors import UsageError
from medret.evaluate import Options, Selection, archive_queries, evaluate
from medret.evaluate.duplicates import ROUNDING, find_duplicates
from medret.search import Snapshot, open_snapshot


@pytest.fixture(scope="module")
def twins(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """30 volumes; 1 has the vectors of 0, nearly, 2 its mean alone; 5 and 6 have the same bytes, and 7 and 8."""
    volumes = list(stores.synthetic_volumes(30, seed=4))
    rng = np.random.default_rng(0)
    near = volumes[0].vectors.astype(np.float32) + 0.003 * rng.standard_normal(volumes[0].vectors.shape)
    volumes[1] = replace(volumes[1], vectors=(near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float16))
    mean = volumes[0].vectors.astype(np.float32).mean(axis=0)
    volumes[2] = replace(volumes[2], vectors=np.tile(mean / np.linalg.norm(mean), (6, 1)).astype(np.float16))
    shas = {6: 5, 8: 7}
    rows = [
        stores.ledger_row(
            volume.volume_id,
            organ=volume.volume_id.split("/")[1].split("_")[0],
            content_sha256=f"{shas.get(number, number):064x}",
        )
        for number, volume in enumerate(volumes)
    ]
    made = stores.make_store(tmp_path_factory.mktemp("twins") / "store", tuple(volumes), per_shard=7, ledger=rows)
    return open_snapshot(made.uri)


def test_copies_and_near_twins_are_found_and_a_common_mean_is_not_enough(twins: Snapshot) -> None:
    ids = twins.labels()["volume_id"].to_pylist()
    found = find_duplicates(twins)
    assert [(pair.first, pair.second, pair.copy) for pair in found.pairs] == [
        (ids[5], ids[6], True),
        (ids[7], ids[8], True),
        (ids[0], ids[1], False),
    ]
    assert found.pairs[2].score > 0.99
    assert found.pairs[2].cosine is not None
    assert found.crowded == 0
    assert found.to_leave_out() == [ids[1], ids[6], ids[8]]
    document = found.to_json(twins.labels())
    assert (document["pairs"][0]["labels"][0] or {})["organ"]
    assert (document["volumes"], document["copies"]) == (30, 2)


def test_every_pair_is_found_that_a_comparison_of_all_finds(twins: Snapshot) -> None:
    ids = twins.labels()["volume_id"].to_pylist()
    vectors = {name: twins.resolve(name) for name in ids}
    expected = set()
    for number, one in enumerate(ids):
        for other in ids[number + 1 :]:
            cosines = vectors[one].slices.vectors @ vectors[other].slices.vectors.T
            planes = [np.array(vectors[one].slices.plane_names) == plane for plane in ("axial", "sagittal")]
            both = [
                np.mean(np.concatenate([table[np.ix_(p, p)].max(axis=1) for p in planes]))
                for table in (cosines, cosines.T)
            ]
            if min(float(np.mean(both)), float(vectors[one].volume @ vectors[other].volume)) >= 0.9 - ROUNDING:
                expected.add((one, other))
    found = find_duplicates(twins, at_least=0.9)
    assert {(pair.first, pair.second) for pair in found.pairs if not pair.copy} == expected
    assert len(expected) > 10
    assert found.crowded == 0


def test_what_is_left_out_is_neither_asked_nor_found(twins: Snapshot) -> None:
    without = frozenset(find_duplicates(twins).to_leave_out())
    selection = Selection(aggregations=["mean"])
    found = evaluate(twins, archive_queries(twins, without), Options(selection=selection, min_relevant=1))
    assert found.query_set.queries.num_rows == found.query_set.candidates.num_rows == 27
    assert all(row.n <= 27 for row in found.rows)
    with pytest.raises(UsageError, match="has no volume 'nobody', which is to be left out"):
        archive_queries(twins, frozenset({"nobody"}))


@pytest.mark.parametrize("at_least", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_that_is_no_cosine(twins: Snapshot, at_least: float) -> None:
    with pytest.raises(UsageError, match="expected a cosine above 0 and at most 1"):
        find_duplicates(twins, at_least)


def test_many_copies_of_one_file(stores: Any, tmp_path: Path) -> None:
    volumes = stores.synthetic_volumes(40, seed=6)
    same = tuple(replace(volume, vectors=volumes[0].vectors) for volume in volumes)
    rows = [stores.ledger_row(volume.volume_id, content_sha256="a" * 64) for volume in same]
    found = find_duplicates(open_snapshot(stores.make_store(tmp_path / "store", same, ledger=rows).uri))
    assert len(found.to_leave_out()) == 39


def test_files_of_the_volumes_names_do_not_ask(
    twins: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = find_duplicates(twins).pairs
    for name in twins.labels()["volume_id"].to_pylist():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no volume")
    monkeypatch.chdir(tmp_path)
    assert find_duplicates(twins).pairs == expected
    assert archive_queries(twins).resolve(0, twins.models[0], twins.aggregations[0]).volume_ids
