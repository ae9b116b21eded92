from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medret.demo.phantoms import write_phantom
from medret.evaluate import Evaluation, Options, Selection, archive_queries, evaluate
from medret.evaluate.evaluation_report import confusion, principal_components, report_page
from medret.html.plots import Bar, Point, bars, matrix, scatter
from medret.search import Snapshot, open_snapshot

EVIL = "<script>alert('x')</script> & \"quoted\""
KINDS = {"Liver": "abdomen_ct", "Lung": "chest_ct", "Brain": "head_mri"}
WIDTH, HEIGHT = 1350, 3600


class _Page(HTMLParser):
    """What a page is made of; raises when tags do not match."""

    VOID = frozenset({"meta", "img", "br", "wbr", "rect", "path", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.images: list[str] = []
        self.classes: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        values = dict(attrs)
        self.classes += (values.get("class") or "").split()
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"] or "")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pictured(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Evaluation]:
    """A store of 24 volumes, six of which have phantoms to show, and its evaluation."""
    folder = tmp_path_factory.mktemp("pictured")
    rows = []
    volumes = stores.synthetic_volumes(24, seed=5)
    for number, volume in enumerate(volumes):
        organ = volume.volume_id.split("/")[1].split("_")[0].capitalize()
        path = folder / "archive" / volume.volume_id
        if number % 4:
            write_phantom(path, KINDS[organ], number, shape=(40, 36, 20))
        values = {"subject": f"s{number // 2}", "organ": organ, "modality": "CT" if number % 2 else "MRI"}
        rows.append(stores.ledger_row(volume.volume_id, **values, uri=str(path), content_sha256=f"{number:064x}"))
    made = stores.make_store(folder / "store", volumes, ledger=rows, archive=str(folder / "archive"))
    snapshot = open_snapshot(made.uri)
    options = Options(selection=Selection(aggregations=["mean"], modes=["volume"]))
    return snapshot, evaluate(snapshot, archive_queries(snapshot), options)


@pytest.fixture(scope="module")
def page(pictured: tuple[Snapshot, Evaluation]) -> str:
    return report_page(*pictured)


def test_plots_thumbnails_and_figures_are_there(page: str, pictured: tuple[Snapshot, Evaluation]) -> None:
    snapshot, found = pictured
    parsed = _Page(page)
    assert {"bars", "matrix", "scatter", "gallery"} <= set(parsed.classes)
    assert parsed.classes.count("mark") >= 24
    assert len(parsed.images) >= 15
    for source in parsed.images:
        assert source.startswith("data:image/png;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size == (160, 160)
    macro = found.figure(found.leading, "subject", "organ", "macro", "recall@1")
    assert macro is not None
    for text in (snapshot.id, f"{macro.value:.3f}", "chance", "95 %", "Liver", "other subjects", "MRI"):
        assert text in parsed.text
    assert "the file is no longer there" in parsed.text  # volumes without a phantom


def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    parsed = _Page(page)
    assert not {"script", "link", "iframe", "object", "a", "form"} & set(parsed.counts)
    assert not re.search(r"https?:|url\(|@import|(src|href)=(?!\"data:)", page)
    assert "default-src 'none'" in page


def test_every_text_is_escaped(stores: Any, tmp_path: Path) -> None:
    volumes = stores.synthetic_volumes(8)
    rows = [
        stores.ledger_row(v.volume_id, subject=EVIL + str(n), organ=EVIL, modality=EVIL, metadata=[("dataset", EVIL)])
        for n, v in enumerate(volumes)
    ]
    made = stores.make_store(tmp_path / "store", volumes, ledger=rows, archive=f"/archive/{EVIL}")
    snapshot = open_snapshot(made.uri)
    text = report_page(snapshot, evaluate(snapshot, archive_queries(snapshot), Options()), title=EVIL)
    assert "<script" not in text
    assert "alert('x')" not in text
    assert _Page(text).text.count("<script>alert('x')") > 8


def test_the_page_looks_right_in_a_browser(page: str, tmp_path: Path) -> None:
    """Plots and thumbnails are drawn: their colours are on the screen, in large numbers."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    pixels = _screenshot(chromium, page, tmp_path)
    assert pixels.shape[:2] == (HEIGHT, WIDTH)
    assert _near(pixels, (0x3D, 0x8B, 0xD4)) > 5_000, "bars"
    assert _near(pixels, (0xF2, 0xB8, 0x4B)) > 100, "chance ticks"
    assert _near(pixels, (0x35, 0xD0, 0xC0)) > 2_000, "means, the diagonal, frames of hits"
    assert _near(pixels, (0x5A, 0xB4, 0xF0)) > 100, "the first class on the map"
    grey = (np.ptp(pixels, axis=2) < 6) & (pixels[:, :, 0] > 90)
    assert grey.sum() > 20_000, "thumbnails and text"
    rows = pixels.reshape(HEIGHT, -1).std(axis=1)
    assert (rows > 1).mean() > 0.75  # no large part of the page is blank


def _screenshot(chromium: str, page: str, folder: Path) -> NDArray[np.int64]:
    (folder / "page.html").write_text(page, encoding="utf-8")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={WIDTH},{HEIGHT}",
        f"--screenshot={folder / 'page.png'}",
    ]
    command = [chromium, *flags, (folder / "page.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(folder / "page.png").convert("RGB")).astype(np.int64)


def _near(pixels: NDArray[np.int64], colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - colour).max(axis=2) <= 12).sum())


def test_confusion_counts_first_hits(pictured: tuple[Snapshot, Evaluation]) -> None:
    _, found = pictured
    counts, rows, columns = confusion(found, "subject", "organ")
    assert rows == ["Brain", "Liver", "Lung"]
    assert columns[:3] == rows
    assert counts.sum() == 24
    right = np.trace(counts[:, :3]) / counts.sum()
    micro = found.figure(found.leading, "subject", "organ", "micro", "recall@1")
    assert micro is not None
    assert right == pytest.approx(micro.value)


def test_principal_components_keep_distances_of_a_plane() -> None:
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((20, 2)) @ np.linalg.qr(rng.standard_normal((7, 2)))[0].T + 3
    places, share = principal_components(flat)
    assert share == pytest.approx(1)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (flat, places)]
    assert distances[0] == pytest.approx(distances[1])
    same, share = principal_components(np.ones((4, 3)))
    assert (same == 0).all()
    assert share == 1


def test_plots_of_little_are_drawn_too() -> None:
    for drawn in (
        bars([], "none"),
        bars([Bar(EVIL, 1, 0.5, 0.5, 0.5, 0.1, False)], EVIL),
        matrix(np.array([[1]]), [EVIL], [EVIL], EVIL),
        scatter([], "none"),
        scatter([Point(1.0, 2.0, 99, 99, EVIL)], EVIL),
    ):
        assert "<script" not in drawn
        assert "nan" not in drawn
        _Page(drawn)
