"""A synthetic store with labels worth scoring: subjects of several volumes, two datasets, several organs a volume."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medret.search import Snapshot, open_snapshot

ORGANS = ("Liver", "Lung", "Brain", "Liver;Lung", "Kidney")
REGIONS = {"Liver": "Abdomen", "Lung": "Chest", "Brain": "Head", "Liver;Lung": "Abdomen", "Kidney": "Abdomen"}


def _maker() -> ModuleType:
    path = Path(__file__).parents[1] / "search" / "conftest.py"
    spec = importlib.util.spec_from_file_location("synthetic_stores", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic_stores"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stores() -> ModuleType:
    """The functions that make synthetic stores."""
    return _maker()


def label_rows(stores: ModuleType, volumes: Any) -> list[dict[str, Any]]:
    """Subjects of three volumes; the first third of the volumes comes from dataset A, the others from B and C."""
    rows = []
    for number, volume in enumerate(volumes):
        cluster = volume.volume_id.split("/")[1].split("_")[0].capitalize()
        organ = {0: "Liver;Lung", 1: "Kidney"}.get(number % 11, cluster)
        rows.append(
            stores.ledger_row(
                volume.volume_id,
                subject=None if number == 5 else f"subject-{number // 3}",
                modality="CT" if number % 4 else "MRI",
                body_region=REGIONS[organ],
                organ=None if number == 7 else organ,
                metadata=[("dataset", "ABC"[number % 3])],
                content_sha256=f"{number:064x}",
            )
        )
    return rows


@pytest.fixture(scope="session")
def labelled_store(stores: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """48 volumes of 6 slices, in 3 shards an index."""
    volumes = stores.synthetic_volumes(48, seed=3)
    return stores.make_store(
        tmp_path_factory.mktemp("labelled") / "store",
        volumes,
        per_shard=16,
        ledger=label_rows(stores, volumes),
    )


@pytest.fixture(autouse=True)
def _own_cache_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def snapshot(labelled_store: Any) -> Snapshot:
    return open_snapshot(labelled_store.uri)
