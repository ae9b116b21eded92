"""Previews as a snapshot hands them out, and as pages and notebooks show them where the archive is out of reach."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medret.embeddings.parquet import PREVIEW_ROWS, parquet_bytes, preview_table
from medret.errors import CorruptError, NotFoundError, UsageError
from medret.search import Snapshot, open_snapshot, open_snapshots, pictures, stored_previews
from medret.search.stored_previews import read_previews
from medret.volume import SliceRef
from medret.volume.previews import PREVIEWS_MAX, Preview, make_previews

PER_VOLUME = 3


def previews_of(volume_id: str, seed: int, count: int = PER_VOLUME) -> tuple[Preview, ...]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16), np.uint8)
    refs = [SliceRef("axial", 10 + 20 * at, 0.0, 0.0) for at in range(count)]  # of synthetic volumes
    return tuple(each for at, ref in enumerate(refs) for each in make_previews([ref], pixels[at : at + 1], 1))


def rows_of(volume_id: str, previews: tuple[Preview, ...]) -> list[dict[str, Any]]:
    return [
        {"volume_id": volume_id, "plane": one.plane, "position": one.slice_index, "image": one.image}
        for one in previews
    ]


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory, store_maker: Callable[..., Any], volume_maker: Callable[..., Any]
) -> Any:
    """A store of 20 volumes in 3 shards, of which the last volume has no previews; and the previews of the others."""
    volumes = volume_maker(20)
    previews = {one.volume_id: previews_of(one.volume_id, seed) for seed, one in enumerate(volumes[:-1])}
    rows = [row for volume_id, found in previews.items() for row in rows_of(volume_id, found)]
    made = store_maker(tmp_path_factory.mktemp("shown") / "store", volumes, per_shard=8, previews=rows)
    return made, previews


def test_each_volume_has_its_own(shown: Any) -> None:
    made, previews = shown
    snapshot = open_snapshot(made.uri)
    assert snapshot.previews(made.ids) == {**previews, made.ids[-1]: ()}
    assert snapshot.previews([]) == {}
    assert snapshot.previews([(made.ids[3], 0)]) == {(made.ids[3], 0): previews[made.ids[3]]}
    for unknown in ("unknown", (made.ids[3], 1), ("unknown", 0)):
        with pytest.raises(NotFoundError, match="has no volume"):
            snapshot.previews([unknown])


def test_a_filter_hides_previews_as_it_hides_volumes(shown: Any) -> None:
    made, previews = shown
    snapshot = open_snapshot(made.uri).restricted("organ = 'Liver'")
    seen = [name for name in made.ids if "liver" in name]
    assert snapshot.previews(seen) == {name: previews.get(name, ()) for name in seen}
    hidden = next(name for name in made.ids if "liver" not in name)
    for name, shown_ids in ((seen[0], 1), (hidden, 0)):  # as a query by the file that it was
        html = snapshot.pictures.page([("query", f"/synthetic-archive/{name}", [])])
        assert html.count("Previews, stored") == shown_ids
    for name in (hidden, (hidden, 0), f"{made.uri}#{hidden}"):
        with pytest.raises(NotFoundError, match="has no volume"):
            snapshot.previews([name])


def test_a_store_without_previews_has_none(made_store: Any) -> None:
    assert open_snapshot(made_store.uri).previews(made_store.ids[:2]) == dict.fromkeys(made_store.ids[:2], ())


def test_of_several_stores_each_has_its_own(
    shown: Any, tmp_path: Path, store_maker: Callable[..., Any], volume_maker: Callable[..., Any]
) -> None:
    made, previews = shown
    volumes = volume_maker(3)
    theirs = previews_of("", 99)
    other = store_maker(tmp_path / "other", volumes, previews=rows_of(volumes[0].volume_id, theirs))
    both, name = open_snapshots([made.uri, other.uri]), volumes[0].volume_id
    names = [(name, 0), (name, 1), f"{made.uri}#{name}", f"{other.uri}#{name}"]
    assert list(both.previews(names).values()) == [previews[name], theirs] * 2  # type: ignore[type-var]
    with pytest.raises(UsageError, match="say which with"):
        both.previews([name])


def test_a_volume_is_read_once(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = shown
    snapshot, read = open_snapshot(made.uri), []

    def noted(path: Path, volume_id: str) -> tuple[Preview, ...]:
        read.append(volume_id)
        return read_previews(path, volume_id)

    monkeypatch.setattr(stored_previews, "read_previews", noted)
    for _ in range(3):
        snapshot.previews(made.ids[:2])
    assert read == made.ids[:2]


def test_only_row_groups_that_may_hold_the_volume_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = previews_of("", 1)
    ids = [f"v{number:03d}" for number in range(100)]
    rows = [row for volume_id in ids for row in rows_of(volume_id, each)]
    path = tmp_path / "previews.parquet"
    path.write_bytes(parquet_bytes(preview_table(rows, "0" * 16)))
    groups = pq.read_metadata(path).num_row_groups
    assert groups == -(-len(rows) // PREVIEW_ROWS)
    asked: list[int] = []
    whole = pq.ParquetFile.read_row_groups

    def noted(file: Any, chosen: list[int], *more: Any) -> Any:
        asked.append(len(chosen))
        return whole(file, chosen, *more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    for volume_id in ids:
        assert read_previews(path, volume_id) == each
    assert max(asked) <= 2
    assert read_previews(path, "v0005") == ()


FORGED: dict[str, tuple[str, Callable[[Preview], Preview]]] = {
    "a page": ("is not a JPEG", lambda one: replace(one, image=b"<script>alert(1)</script>")),
    "a large picture": ("is not a JPEG", lambda one: replace(one, image=_jpeg(400))),
    "half a picture": ("is not a JPEG", lambda one: replace(one, image=one.image[: len(one.image) // 2])),
    "many bytes": ("expected at most", lambda one: replace(one, image=one.image + bytes(10**6))),
    "no plane": ("is of no slice", lambda one: replace(one, plane="<b>")),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_pictures_are_refused(
    name: str, tmp_path: Path, store_maker: Callable[..., Any], volume_maker: Callable[..., Any]
) -> None:
    problem, forge = FORGED[name]
    volumes = volume_maker(2)
    one, *others = previews_of("", 1)
    rows = rows_of(volumes[0].volume_id, (forge(one), *others))
    made = store_maker(tmp_path / "store", volumes, previews=rows)
    with pytest.raises(CorruptError, match=problem):
        open_snapshot(made.uri).previews(made.ids)


def test_a_volume_with_too_many_is_refused(
    tmp_path: Path, store_maker: Callable[..., Any], volume_maker: Callable[..., Any]
) -> None:
    volumes = volume_maker(1)
    rows = rows_of(volumes[0].volume_id, previews_of("", 1)) * PREVIEWS_MAX
    made = store_maker(tmp_path / "store", volumes, previews=rows)
    with pytest.raises(CorruptError, match=f"expected at most {PREVIEWS_MAX}"):
        open_snapshot(made.uri).previews(made.ids)


def test_a_damaged_file_is_named(
    tmp_path: Path, store_maker: Callable[..., Any], volume_maker: Callable[..., Any]
) -> None:
    volumes = volume_maker(1)
    made = store_maker(tmp_path / "store", volumes, previews=rows_of(volumes[0].volume_id, previews_of("", 1)))
    [path] = (tmp_path / "store").rglob("previews-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=path.name):
        open_snapshot(made.uri).previews(made.ids)
    html = str(open_snapshot(made.uri).show(made.ids[0], exclude="none")._repr_html_())
    assert "its previews cannot be shown" in html
    path.unlink()
    with pytest.raises(CorruptError, match="is missing"):
        open_snapshot(made.uri).previews(made.ids)


@pytest.fixture
def snapshot(shown: Any) -> Snapshot:
    return open_snapshot(shown[0].uri)


def test_a_page_shows_previews_of_what_is_out_of_reach_and_says_so(shown: Any, snapshot: Snapshot) -> None:
    made, previews = shown
    hits = snapshot.search(made.ids[0], 20, exclude="none")
    uri, reason = snapshot.uri_of_query(made.ids[0]), "the file is no longer there"
    for html, queries in (
        (snapshot.pictures.page([("vector", None, hits)]), 0),
        (snapshot.pictures.page([(made.ids[0], uri, hits)]), 1),  # the query is one of the volumes
        (str(hits._repr_html_()), 0),
    ):
        assert html.count(f"Previews, stored when it was indexed: {reason}") == len(previews) + queries
        assert html.count(f"<strong>No image</strong><span>{reason}") == 1  # of the one without
        assert html.count("data:image/jpeg;base64,") >= PER_VOLUME * len(previews)


def test_what_can_be_read_comes_from_the_archive(
    phantom_archive: Path, tmp_path: Path, store_maker: Callable[..., Any], volume_maker: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = phantom_archive / "leg_mri" / "leg_mri_0.nii.gz"
    from tests.search.conftest import ledger_row, recipe_of

    volumes = tuple(replace(one, volume_id="leg_mri_0.nii.gz") for one in volume_maker(1))
    digest = recipe_of().digest
    ledger = [ledger_row("leg_mri_0.nii.gz", uri=str(path), modality="MR", metadata=[], shards=[(digest, "shard-0")])]
    rows = rows_of("leg_mri_0.nii.gz", previews_of("", 1))
    made = store_maker(tmp_path / "store", volumes, previews=rows, ledger=ledger, archive=str(path.parent))
    snapshot = open_snapshot(made.uri, archive=path.parent)
    shown = str(snapshot.show("leg_mri_0.nii.gz", exclude="none")._repr_html_())
    assert "data:image/png" in shown
    assert "Previews, stored" not in shown
    monkeypatch.setattr(pictures, "PATIENCE_S", -1.0)
    shown = str(snapshot.show("leg_mri_0.nii.gz", exclude="none")._repr_html_())
    assert "Previews, stored when it was indexed: reading the volumes before it took more than" in shown


def test_hits_that_are_shown_keep_their_pictures(
    snapshot: Snapshot, shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = shown[0].ids[0]
    hits = snapshot.show(query, 3)
    html = hits._repr_html_()
    assert list(hits) == list(snapshot.search(query, 3))
    assert html == snapshot.search(query, 3)._repr_html_()
    monkeypatch.setattr(pictures.Pictures, "read", None)  # nothing is read again
    assert hits._repr_html_() == html


def _jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG")
    return buffer.getvalue()
