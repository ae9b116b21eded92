"""A synthetic store with labels worth scoring: subjects of several volumes, two datasets, several organs a volume."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from msgspec.structs import replace

from medret.schemas import FILES, LEDGER
from medret.search import Snapshot, open_snapshot
from medret.storage import Location

ORGANS = ("Liver", "Lung", "Brain", "Liver;Lung", "Kidney")
PER_SHARD = 16
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
                shards=[(stores.recipe_of().digest, f"shard-{number // PER_SHARD}")],
            )
        )
    return rows


@pytest.fixture(scope="session")
def labelled_store(stores: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """48 volumes of 6 slices, in 3 shards an index, under two models."""
    volumes = stores.synthetic_volumes(48, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "publish", _publish_whole(stores))
        return _made(stores, tmp_path_factory, volumes)


def _publish_whole(stores: ModuleType) -> Callable[..., Any]:
    """`publish` with a second model that has the vectors of the first."""
    other = stores.recipe_of("second-model")
    publish = stores.publish

    def publish_whole(store: Location, ledger: pa.Table, gone: Sequence[str], files: pa.Table, **manifest: Any) -> Any:
        (entry,) = manifest["recipes"]
        rows = files.to_pylist()
        rows += [row | {"recipe": other.digest} for row in rows]
        shards = [[*own, (other.digest, own[0][1])] for own in ledger["shards"].to_pylist()]
        at = LEDGER.get_field_index("shards")
        ledger = ledger.set_column(at, LEDGER.field("shards"), pa.array(shards, LEDGER.field("shards").type))
        manifest["recipes"] = [entry, replace(entry, recipe=other.to_json())]
        manifest["indices"] += [replace(one, recipe=other.digest) for one in manifest["indices"]]
        return publish(store, ledger, gone, pa.Table.from_pylist(rows, schema=FILES), **manifest)

    return publish_whole


def _made(stores: ModuleType, tmp_path_factory: pytest.TempPathFactory, volumes: Any) -> Any:
    return stores.make_store(
        tmp_path_factory.mktemp("labelled") / "store",
        volumes,
        per_shard=PER_SHARD,
        ledger=label_rows(stores, volumes),
    )


@pytest.fixture(autouse=True)
def _own_cache_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def snapshot(labelled_store: Any) -> Snapshot:
    return open_snapshot(labelled_store.uri)
