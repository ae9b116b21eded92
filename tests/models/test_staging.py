from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret.errors import WeightsError
from medret.models import Weights, model_spec, read_contents, resolve_weights, stage_weights, staged_weights
from medret.models.weights import combined_sha256


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path))


def stage(arguments: tuple[Weights, dict[str, bytes]]) -> str:
    return stage_weights(*arguments).sha256


@pytest.fixture
def two_parts(tmp_path: Path) -> tuple[Weights, dict[str, bytes]]:
    contents = {"lora": b"small", "backbone": bytes(range(256)) * 4000}
    files = {}
    for role, data in contents.items():
        files[role] = tmp_path / f"driver-{role}"
        files[role].write_bytes(data)
    return Weights("m", combined_sha256({role: sha256(data) for role, data in contents.items()}), "s", files), contents


def test_staging_writes_once_and_reuses(two_parts: Any, tmp_path: Path) -> None:
    weights, contents = two_parts
    assert read_contents(weights) == contents
    assert staged_weights(weights) is None
    staged = stage_weights(weights, contents)
    assert staged.files == {role: tmp_path / "weights" / weights.sha256 / role for role in contents}
    assert {role: path.read_bytes() for role, path in staged.files.items()} == contents
    assert (staged.model, staged.sha256, staged.source) == (weights.model, weights.sha256, weights.source)
    inodes = [path.stat().st_ino for path in staged.files.values()]
    assert stage_weights(weights, {}) == staged  # nothing is sent again to a node that has them
    assert [path.stat().st_ino for path in staged.files.values()] == inodes
    assert staged_weights(weights) == staged


def test_staging_takes_views_of_shared_memory(two_parts: Any, tmp_path: Path) -> None:
    weights, contents = two_parts
    views = {role: np.frombuffer(data, np.uint8).data for role, data in contents.items()}
    assert stage_weights(weights, views).sha256 == weights.sha256


def test_staging_by_many_processes_at_once(two_parts: Any, tmp_path: Path) -> None:
    weights, contents = two_parts
    with multiprocessing.get_context("fork").Pool(6) as pool:
        assert set(pool.map(stage, [(weights, contents)] * 24)) == {weights.sha256}
    folder = tmp_path / "weights" / weights.sha256
    assert sorted(path.name for path in folder.iterdir()) == sorted(contents)  # no temporary file stays


def test_staging_repairs_a_damaged_copy(two_parts: Any, tmp_path: Path) -> None:
    weights, contents = two_parts
    staged = stage_weights(weights, contents)
    staged.files["backbone"].write_bytes(b"damaged")
    assert staged_weights(weights) is None
    assert stage_weights(weights, contents).files["backbone"].read_bytes() == contents["backbone"]


def test_staging_refuses_other_bytes(two_parts: Any, tmp_path: Path) -> None:
    weights, contents = two_parts
    with pytest.raises(WeightsError, match="bytes to stage have sha256"):
        stage_weights(weights, {**contents, "lora": b"other"})
    assert not (tmp_path / "weights").exists()


def test_a_cache_that_cannot_be_written_is_named(two_parts: Any, tmp_path: Path) -> None:
    weights, contents = two_parts
    (tmp_path / "weights").write_bytes(b"a file where a folder should be")
    with pytest.raises(WeightsError, match="set MEDRET_CACHE"):
        stage_weights(weights, contents)


def test_random_weights_need_no_staging(tmp_path: Path) -> None:
    weights = resolve_weights(model_spec("dinov1"), "random")
    assert stage_weights(weights, {}) == weights
    assert not (tmp_path / "weights").exists()
