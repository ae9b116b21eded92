from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medret.recipe import SliceRecipe
from medret.search import Hit, Snapshot, open_snapshot
from medret.search.hit import SliceMatch, SlicePair
from medret.volume import read_volume

RECIPE = SliceRecipe(planes=("axial", "sagittal"))  # that of the synthetic store
EVIL = "<script>alert('x')</script> & \"quoted\""


class _Page(HTMLParser):
    """Tags and attributes of a page; raises when tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in {"meta", "img", "br", "wbr"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def snapshot(made_store: Any) -> Snapshot:
    return open_snapshot(made_store.uri)


def _hit(path: Path, rank: int = 1, labels: dict[str, str | None] | None = None, own: int | None = None) -> Hit:
    """A hit whose match is the first sagittal slice of the volume, and the query's sagittal slice `own`."""
    refs = read_volume(path.read_bytes(), path.name, RECIPE, [32]).slices
    first = next(ref.slice_index for ref in refs if ref.plane == "sagittal")
    match = SliceMatch(
        "sagittal",
        None if own is None else (own, own),
        (first, first),
        0.875,
        (SlicePair("sagittal", own, first, 0.875),),
    )
    return Hit(rank, path.name, str(path), 0.9876, labels or {}, match)


def test_images_are_embedded_and_described(snapshot: Snapshot, phantom_archive: Path) -> None:
    query, other = (phantom_archive / "leg_mri" / f"leg_mri_{number}.nii.gz" for number in (0, 1))
    own = [ref for ref in read_volume(query.read_bytes(), "q", RECIPE, [32]).slices if ref.plane == "sagittal"]
    hits = [_hit(query, own=own[2].slice_index), _hit(other, 2, {"organ": "Leg"}, own[-1].slice_index)]
    page = _Page(snapshot.pictures.page([(str(query), str(query), hits)], "Legs"))
    # middle slices of query and hits (3 axial, 1 sagittal), the query's match, and both sides of each hit's
    assert len(page.images) == 3 * 4 + 1 + 2 * 2
    for image in page.images:
        source = image["src"] or ""
        assert source.startswith("data:image/png;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert (picture.size, picture.mode) == ((160, 160), "L")
        assert image["alt"]
    described = [image["alt"] or "" for image in page.images]
    assert f"query: sagittal {own[2].slice_index}, matched by #1" in described
    assert f"query: sagittal {own[-1].slice_index}, most like hit 2" in described
    assert any(re.fullmatch(r"hit 2, .*: sagittal \d+, most like the query, cosine 0\.875", text) for text in described)
    for text in ("Legs", "leg_mri_0.nii.gz", "0.9876", "Leg", "no labels", snapshot.id):
        assert text in page.text


def test_nothing_is_fetched_from_elsewhere(snapshot: Snapshot, phantom_archive: Path) -> None:
    path = phantom_archive / "head_mri" / "head_mri_0.nii.gz"
    text = snapshot.pictures.page([("q", str(path), [_hit(path)])])
    page = _Page(text)
    assert not {"script", "link", "iframe", "object", "a", "form"} & page.tags
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_every_text_is_escaped(snapshot: Snapshot, tmp_path: Path) -> None:
    labels = {"subject": EVIL, "modality": EVIL, "organ": EVIL, EVIL: EVIL}
    hit = Hit(
        1, EVIL, f"{tmp_path}/{EVIL}", 0.5, labels, SliceMatch(EVIL, (1, 1), (2, 2), 0.5, (SlicePair(EVIL, 1, 2, 0.5),))
    )
    text = snapshot.pictures.page([(EVIL, EVIL, [hit]), (EVIL, None, [])], title=EVIL)
    assert "<script" not in text
    assert "alert('x')" not in text
    assert _Page(text).text.count("<script>alert('x')") > 8  # and each is there to be read


def test_an_unreachable_volume_leaves_a_note(snapshot: Snapshot, phantom_archive: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.nii").write_bytes(b"no volume at all")
    reachable = phantom_archive / "leg_mri" / "leg_mri_0.nii.gz"
    hits = [
        Hit(
            1,
            "gone",
            str(tmp_path / "gone.nii"),
            0.9,
            {},
            SliceMatch("axial", (3, 3), (4, 4), 0.9, (SlicePair("axial", 3, 4, 0.9),)),
        ),
        Hit(2, "broken", str(tmp_path / "broken.nii"), 0.8, {}, None),
        Hit(3, "foreign", "nosuchscheme://bucket/x.nii", 0.7, {}, None),
        _hit(reachable, 4),
    ]
    page = _Page(snapshot.pictures.page([("vector", None, hits)]))
    assert "the file is no longer there" in page.text
    assert "not_nifti: " in page.text
    assert "medret knows no filesystem for" in page.text
    assert "has no voxels" in page.text
    assert len(page.images) == 4 + 1


def test_a_password_in_a_query_is_not_shown(snapshot: Snapshot) -> None:
    """E8."""
    query = "http://me:hunter2@127.0.0.1:1/case.nii.gz?token=hunter2"
    text = snapshot.pictures.page([(query, query, [])])
    assert "hunter2" not in text
    assert "http://***@127.0.0.1:1/case.nii.gz" in text
    assert "cannot be read" in text


def test_a_query_without_hits(snapshot: Snapshot) -> None:
    page = _Page(snapshot.pictures.page([("nothing like it", None, [])]))
    assert "No hits." in page.text
    assert "1 query among 30 volumes" in page.text


def test_random_weights_are_said_aloud(
    tmp_path: Path, store_maker: Callable[..., Any], made_store: Any, snapshot: Snapshot
) -> None:
    made = store_maker(tmp_path / "store", made_store.volumes[:2], weights_uri="random:1")
    assert "synthetic-model: random weights" in open_snapshot(made.uri).pictures.page([])
    assert "random weights" not in snapshot.pictures.page([])
