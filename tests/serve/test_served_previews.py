"""Stored previews over HTTP: what is shown of volumes while their archive is out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from medret.serve import LiveStores, Service, create_app
from medret.volume.previews import Preview
from tests.search.conftest import make_store, synthetic_volumes
from tests.search.test_previews import previews_of, rows_of


@pytest.fixture(scope="module")
def previews() -> dict[str, tuple[Preview, ...]]:
    """Three volumes, of which the last has no previews."""
    ids = [volume.volume_id for volume in synthetic_volumes(3)]
    return {volume_id: previews_of(volume_id, seed) for seed, volume_id in enumerate(ids[:-1])} | {ids[-1]: ()}


@pytest.fixture(scope="module")
def asking(previews: dict[str, tuple[Preview, ...]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server whose archive is not there."""
    store: Path = tmp_path_factory.mktemp("previews") / "store"
    rows = [row for volume_id, found in previews.items() for row in rows_of(volume_id, found)]
    made = make_store(store, synthetic_volumes(3), previews=rows)
    live = LiveStores([made.uri])
    with TestClient(create_app(Service(live)), base_url="http://127.0.0.1") as client:
        yield client
    live.close()


def test_previews_are_named_and_handed_out(asking: TestClient, previews: dict[str, tuple[Preview, ...]]) -> None:
    for volume_id, stored in previews.items():
        named = asking.get(f"/v1/volumes/{volume_id}").json()["previews"]
        assert named == [{"plane": each.plane, "slice_index": each.slice_index} for each in stored]
        for number, each in enumerate(stored):
            answer = asking.get(f"/v1/volumes/{volume_id}/previews/{number}")
            assert (answer.headers["content-type"], answer.content) == ("image/jpeg", each.image)
        assert asking.get(f"/v1/volumes/{volume_id}/previews/{len(stored)}").status_code == 404
        assert asking.get(f"/v1/volumes/{volume_id}/slices/axial/10.png").status_code in (404, 422, 503)


@pytest.mark.parametrize("path", ["no/such.nii.gz/previews/0", "previews/0", "no/such.nii.gz/previews/-1"])
def test_what_is_not_there_is_not_found(asking: TestClient, path: str) -> None:
    assert asking.get(f"/v1/volumes/{path}").status_code == 404
