"""A hit names the DICOM instances that its slices were made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medret.cli import main
from medret.html.cards import Tile, VolumeImages, render_hits
from medret.search import Snapshot, open_snapshot
from medret.search.export import export_rows
from medret.search.hit import SliceMatch, SlicePair

UID = "1.2.826.0.1.3680043.8"


@pytest.fixture
def snapshot(store_maker: Callable[..., Any], volume_maker: Callable[..., Any], tmp_path: Path) -> Snapshot:
    """Six volumes of six slices: those of livers are series, of whose sagittal slices none is an instance."""
    volumes = []
    for volume in volume_maker(6):
        if "liver" in volume.volume_id:
            sources = [f"{UID}.{at}" if at % 2 == 0 else None for at in range(6)]
            name = volume.volume_id.removesuffix(".nii.gz")
            volume = replace(volume, volume_id=name, sources=np.array(sources, object))
        volumes.append(volume)
    volumes.sort(key=lambda volume: volume.volume_id)
    return open_snapshot(store_maker(tmp_path / "store", tuple(volumes), per_shard=4).uri)


def test_a_match_names_the_instances_of_both_sides(snapshot: Snapshot) -> None:
    first, second = snapshot.search("synthetic/liver_0000", 2, mode="late")
    assert first.volume_id == "synthetic/liver_0000"
    assert second.volume_id == "synthetic/liver_0003"
    for hit in (first, second):
        assert hit.slices is not None
        for pair in hit.slices.pairs:
            axial = pair.plane == "axial"
            assert pair.hit_source == (f"{UID}.{pair.hit // 10 - 1}" if axial else None)
            assert pair.query_source == (f"{UID}.{(pair.query or 0) // 10 - 1}" if axial else None)
    found = first.to_json()["slices"]
    assert found["plane"] == "axial"
    assert found["hit_sources"] == found["query_sources"] == [f"{UID}.0", f"{UID}.2", f"{UID}.4"]
    assert {"query_source", "hit_source"} <= found["matches"][0].keys()


def test_a_slice_names_its_instance(snapshot: Snapshot) -> None:
    for hit in snapshot.search("synthetic/liver_0000", 4, mode="slice"):
        assert hit.slices is not None
        assert hit.slices.hit_sources == (() if hit.slices.plane == "sagittal" else (hit.slices.pairs[0].hit_source,))


def test_nifti_has_no_instances_and_costs_no_look(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = snapshot.corpus.stores[0]
    monkeypatch.setattr(contents, "_embedded_slices", lambda *_: pytest.fail("read a file"))
    (hit,) = snapshot.search("synthetic/lung_0001.nii.gz", 1)
    assert hit.slices is not None
    assert (hit.slices.hit_sources, hit.slices.query_sources, hit.slices.pairs[0].hit_source) == ((), (), None)


def test_a_range_lists_each_instance_once_and_in_order() -> None:
    pairs = (SlicePair("axial", 3, 5, 0.9), SlicePair("coronal", None, 2, 0.8))
    match = SliceMatch("axial", (0, 3), (4, 7), 0.9, pairs)
    of_hit = {("axial", 7): "c", ("axial", 4): "a", ("axial", 5): "a", ("axial", 8): "d", ("coronal", 5): "x"}
    found = match.with_sources({("axial", 3): "q"}, of_hit)
    assert found.hit_sources == ("a", "c")
    assert found.query_sources == ("q",)
    assert [(pair.query_source, pair.hit_source) for pair in found.pairs] == [("q", "a"), (None, None)]


def test_the_command_and_the_export_name_them(
    snapshot: Snapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", snapshot.uri, "synthetic/liver_0003", "-k", "1", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert hit["slices"]["hit_sources"][0] == f"{UID}.0"
    export_rows(snapshot, tmp_path / "slices.parquet", slices=True)
    table = pq.read_table(tmp_path / "slices.parquet")
    assert table["slice_source"].null_count == 4 * 6 + 2 * 3
    assert f"{UID}.4" in table["slice_source"].to_pylist()
    assert set(table["source"].to_pylist()) == {"made up"}  # the label


def test_the_page_shows_the_instance_under_the_picture(snapshot: Snapshot) -> None:
    (hit,) = snapshot.search("synthetic/liver_0000", 1)
    assert hit.best_pair is not None
    tile = Tile("axial", hit.best_pair.hit, "data:,", f"{UID}.0")
    images = VolumeImages((tile,), {("axial", hit.best_pair.hit): tile})
    assert render_hits([hit.card(images)]).count(f"<code>{UID}.0</code>") == 1
    unseen = render_hits([hit.card("the folder is no longer there")])
    assert f"<dd>{hit.best_pair.hit_source}</dd>" in unseen
