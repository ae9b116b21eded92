"""The page in a real browser, as people use it: by mouse and by keyboard alone, in light and dark, on a phone."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

from medret.errors import UsageError
from medret.search import Encoders, SearchOptions, Snapshots
from medret.serve import LiveStores, Service, create_app
from medret.snapshot import RecipeEntry
from tests.search.conftest import make_store, recipe_of, synthetic_volumes
from tests.search.test_previews import previews_of, rows_of
from tests.serve.conftest import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
CHEST = "chest_ct/0.nii.gz"
Open = Callable[..., "Page"]


@dataclass
class Watched:
    """What a page did that a person does not see. refused: answers that a test expects, by status."""

    requested: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Open]:
    """Opens an address of the server; at the end nothing was asked of another host, and nothing went wrong unseen."""
    watched, contexts, hosts = Watched(), [], set()

    def opened(
        address: str = "", *, url: str = served.url, refusals: bool = False, route: Any = None, **options: Any
    ) -> Page:
        hosts.add(url)
        context = browser.new_context(
            **({"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"} | options)
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: watched.requested.add(request.url))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                watched.complaints.append(message.text)
                if message.type in ("error", "warning") and not (refusals and "Failed to load resource" in message.text)
                else None
            ),
        )
        if route:
            page.route(*route)
        page.goto(f"{url}/{address}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert watched.complaints == []
    own = ("data:", *(f"{kind}{url}/" for kind in ("", "blob:") for url in hosts))
    foreign = {url for url in watched.requested if not url.startswith(own)}
    assert foreign == set()


def _asked(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def _hits(page: Page) -> list[str]:
    """The volume_ids of the hits, once there are some."""
    page.locator(".hit").first.wait_for()
    return [text.partition(": ")[2] for text in page.locator(".hit h2").all_text_contents()]


def _all_drawn(page: Page, selector: str, count: int) -> None:
    """Wait until that many pictures are there and have pixels."""
    page.wait_for_function(
        "([selector, count]) => { const all = [...document.querySelectorAll(selector)];"
        " const missing = all.find((image) => !image.naturalWidth); missing?.scrollIntoView();"
        " return all.length === count && !missing; }",
        arg=[selector, count],
    )


def _at(page: Page) -> list[int]:
    return [int(text.split()[1]) for text in page.locator(".pane .at").all_text_contents()]


def test_from_a_file_to_hits_and_back(open_page: Open, archive: Path, snapshots: Snapshots, tmp_path: Path) -> None:
    ct = [row for row in snapshots.labels().to_pylist() if row["modality"] == "CT"]
    shutil.copy(archive / CHEST, tmp_path / "mine.nii.gz")
    page = open_page()
    page.get_by_role("heading", name="7 volumes").wait_for()
    page.locator('[id="facet modality CT"]').check()
    page.get_by_role("heading", name=f"{len(ct)} volumes in this filter").wait_for()
    assert _asked(page)["is.modality"] == ["CT"]
    assert page.locator("fieldset", has_text="Organ").locator(".choice").all_text_contents() == [
        f"Lung{len(ct)}"
    ]  # it refines
    page.go_back()
    page.get_by_role("heading", name="7 volumes").wait_for()
    assert "is.modality" not in _asked(page)

    page.set_input_files("#file", tmp_path / "mine.nii.gz")
    assert _hits(page)[0] == CHEST  # its own bytes
    assert page.locator(".hit .score").first.text_content() == "Score 1.000"
    _all_drawn(page, ".hit img", 2 * len(_hits(page)))
    of_file = _hits(page)
    page.get_by_role("button", name="More like this").nth(1).click()
    page.wait_for_function(
        "(id) => document.activeElement.id === 'title' && document.activeElement.textContent === `Most like ${id}`",
        arg=of_file[1],
    )
    assert _asked(page)["volume"] == [of_file[1]]
    page.locator(".note").wait_for()
    assert _hits(page)[0] == of_file[1]
    page.go_back()
    page.get_by_role("heading", name="Most like mine.nii.gz").wait_for()
    assert _hits(page) == of_file  # the file is still there
    page.reload()
    page.get_by_text("choose it again to repeat this search").wait_for()
    page.set_input_files("#file", tmp_path / "mine.nii.gz")
    assert _hits(page) == of_file


def _spacing(served: Served, volume_id: str) -> float:
    """Millimetres between axial slices."""
    spacing: list[float] = served.client.get("/v1/view", params={"volume": volume_id}).json()["spacing_mm"]
    return spacing[2]


def test_slices_are_scrolled_together_and_the_link_restores_them(open_page: Open, served: Served) -> None:
    page = open_page(f"?volume={CHEST}&exclude=self")
    assert CHEST not in _hits(page)
    page.get_by_role("button", name="Compare", exact=True).first.click()
    _all_drawn(page, ".slice img", 2)
    query, hit = _at(page)
    page.locator(".stage").first.hover()
    page.mouse.wheel(0, 100)  # down: two slices
    page.wait_for_function(
        "(at) => document.querySelector('.pane .at').value.startsWith(`axial ${at} `)", arg=query - 2
    )
    scale = _spacing(served, CHEST) / _spacing(served, _asked(page)["hit"][0])
    assert _at(page)[1] == max(0, round(hit - 2 * scale))  # the other follows by as many millimetres
    page.get_by_label("Scroll together").uncheck()
    page.locator(".stage").nth(1).press("Home")
    assert _at(page) == [query - 2, 0]
    page.get_by_label("Query: CT window").select_option("lung")
    assert page.get_by_label("Query: window width").input_value() == "1500"
    page.wait_for_function("() => location.search.includes('queryWindow=lung') && location.search.includes('hitAt=0')")
    again = open_page(urlsplit(page.url).query and f"?{urlsplit(page.url).query}")
    _all_drawn(again, ".slice img", 2)
    assert _at(again) == [query - 2, 0]
    assert again.get_by_label("Query: CT window").input_value() == "lung"
    again.keyboard.press("Escape")
    again.wait_for_function("() => !document.querySelector('dialog[open]') && !location.search.includes('show=')")


def test_a_part_is_drawn_where_it_lies(open_page: Open, served: Served) -> None:
    shape = served.client.get(f"/v1/volumes/{CHEST}").json()["shape"]
    page = open_page(f"?volume={CHEST}&show=1&plane=axial&at=5")
    _all_drawn(page, ".slice img", 1)
    page.get_by_text("Search with a part of the query").click()
    page.get_by_role("button", name="Draw a box").click()
    frame = page.locator(".slice").bounding_box()
    assert frame is not None
    # The upper left quarter: the patient's right, front; high x and high y.
    page.mouse.move(frame["x"] + 1, frame["y"] + 1)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 2 - 1, frame["y"] + frame["height"] / 2 - 1)
    page.mouse.up()
    x, y = (
        [int(page.get_by_label(f"{end} voxel along {axis}").input_value()) for end in ("First", "Last")]
        for axis in "xy"
    )
    assert x == [shape[0] // 2, shape[0] - 1]
    assert y == [shape[1] // 2, shape[1] - 1]
    marked = page.locator(".mark").bounding_box()
    assert marked is not None
    assert abs(marked["x"] - frame["x"]) < 3
    assert abs(marked["width"] - frame["width"] / 2) < 4
    page.get_by_label("First voxel along z").fill("2")
    page.get_by_label("Last voxel along z").fill("9")
    page.get_by_role("button", name="Search with this part").click()
    page.get_by_text("the best cosine in the volume").first.wait_for()
    assert _asked(page)["box"] == [f"{x[0]}:{x[1]},{y[0]}:{y[1]},2:9"]
    assert _hits(page)
    body = {"volume": CHEST, "box": _asked(page)["box"][0]}
    expected = served.client.post("/v1/search", json=body).json()["hits"]
    assert _hits(page) == [hit["volume_id"] for hit in expected]


def test_the_keyboard_suffices(open_page: Open) -> None:
    page = open_page()
    page.locator(".tile").first.wait_for()
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#contains").focus()
    page.keyboard.type("HEAD")
    page.get_by_role("heading", name="2 volumes in this filter").wait_for()
    assert page.evaluate("document.activeElement.id") == "contains"  # what is typed is not interrupted
    for _ in range(60):
        press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Find similar":
            break
    press("Enter")
    assert _hits(page)[0].startswith("head_mri/")
    page.wait_for_function("() => document.activeElement.id === 'title'")
    press("Tab")
    while page.evaluate("document.activeElement.textContent") != "Compare":
        press("Tab")
    press("Enter")
    _all_drawn(page, ".slice img", 2)
    before = _at(page)
    press("ArrowDown")
    assert _at(page)[0] == before[0] - 1
    press("Escape")
    page.wait_for_function("() => document.activeElement.textContent === 'Compare'")


def test_the_map_leads_to_volumes(open_page: Open, snapshots: Snapshots) -> None:
    page = open_page("?view=map")
    page.locator(".plot .point").first.wait_for()
    assert page.locator(".plot .point").count() == 7
    legend = page.get_by_role("group", name="Values of Organ").get_by_role("button")
    counts = dict(
        zip(
            legend.locator("span:not(.count)").all_text_contents(),
            legend.locator(".count").all_text_contents(),
            strict=True,
        )
    )
    organs = Counter(row["organ"] for row in snapshots.labels().to_pylist())
    assert counts == {organ: str(count) for organ, count in organs.items()}
    legend.first.click()
    assert page.locator(".plot .pale").count() == 7 - int(next(iter(counts.values())))
    page.locator(".plot").focus()
    seen = set()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "End"):
        page.keyboard.press(key)
        seen.add(page.locator(".plot").get_attribute("aria-activedescendant"))
    assert len(seen) > 1
    chosen = page.locator(".point[aria-selected=true]").get_attribute("aria-label")
    assert chosen is not None
    page.keyboard.press("Enter")
    assert _hits(page)[0] == chosen.partition(",")[0]


@pytest.mark.parametrize(
    ("address", "ready"),
    [
        ("", ".tile img[src]"),
        (f"?volume={CHEST}", ".hit img[src]"),
        (f"?volume={CHEST}&show=1&hit={CHEST}&box=0:5,0:5,0:5", ".pane img[src]"),
        ("?view=map", ".plot"),
    ],
    ids=["list", "hits", "viewer", "map"],
)
def test_it_is_accessible_and_fits(open_page: Open, address: str, ready: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe").Axe()
    page = open_page(address, color_scheme="dark")
    page.locator(ready).first.wait_for()
    page.locator(".facets fieldset").first.wait_for(state="attached")
    schemes: tuple[tuple[Literal["dark", "light"], int], ...] = (("dark", 1280), ("light", 390))
    for scheme, width in schemes:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        problems = axe.run(page).response["violations"]
        assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in problems] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_file_that_cannot_be_used_is_explained(open_page: Open, archive: Path) -> None:
    page = open_page(refusals=True)
    page.set_input_files("#file", archive / "broken.nii.gz")
    page.get_by_role("heading", name="This file cannot be used").wait_for()
    failure = page.get_by_role("alert").filter(has_text="Code:").text_content() or ""
    assert failure.endswith("Code: gzip_corrupt")
    assert "the gzip stream is damaged" in failure
    page.locator("#where").fill("organ ~ 3")
    page.get_by_role("button", name="Apply the condition").click()
    page.get_by_text("this is not understood").first.wait_for()


def test_a_token_is_asked_for_and_sent(open_page: Open) -> None:
    sent = []

    def guarded(route: Route) -> None:
        sent.append(route.request.headers.get("authorization"))
        if sent[-1] == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"code": "no_token", "reason": "this token is unknown"})

    page = open_page(refusals=True, route=("**/v1/**", guarded))
    page.get_by_role("textbox", name="Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("this token is unknown").wait_for()
    page.get_by_role("textbox", name="Token").fill("secret")
    page.keyboard.press("Enter")
    _all_drawn(page, ".tile img", 7)  # pictures are asked for with the token too
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert set(sent) == {None, "Bearer wrong", "Bearer secret"}


def test_a_busy_server_is_asked_again(open_page: Open) -> None:
    refused: list[str] = []

    def busy(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            answer = {"code": "busy", "reason": "all encoders are at work"}
            route.fulfill(status=503, json=answer, headers={"Retry-After": "1"})

    page = open_page(f"?volume={CHEST}", refusals=True, route=("**/v1/search", busy))
    page.get_by_text("all encoders are at work. Trying again in 1 s.").wait_for()
    assert _hits(page)
    assert len(refused) == 1


def test_a_volume_out_of_reach_is_explained(open_page: Open) -> None:
    def out_of_reach(route: Route) -> None:
        route.fulfill(status=422, json={"code": "wrong_usage", "reason": "the archive is not mounted"})

    page = open_page(f"?volume={CHEST}", refusals=True, route=("**/slices/**", out_of_reach))
    assert page.locator(".hit .absent").first.text_content() == "No pictureThe archive is not mounted".replace(
        "The", "the"
    )


def test_previews_stand_in_for_an_archive_out_of_reach(open_page: Open, tmp_path: Path) -> None:
    ids = [volume.volume_id for volume in synthetic_volumes(3)]
    rows = [row for seed, volume_id in enumerate(ids) for row in rows_of(volume_id, previews_of(volume_id, seed))]
    live = LiveStores([make_store(tmp_path / "store", synthetic_volumes(3), previews=rows).uri])
    with serving(create_app(Service(live))) as server:
        page = open_page(f"?volume={ids[0]}", refusals=True, url=server.url)
        _all_drawn(page, ".hit img", 2 * len(_hits(page)))
        assert "preview" in (page.locator(".hit figcaption").first.text_content() or "")
    live.close()


class _SomeWords(Encoders):
    """Knows one text, whose direction is that of a stored volume."""

    def __init__(self, known: str, direction: NDArray[np.float32]) -> None:
        super().__init__()
        self._known, self._direction = known, direction

    def directions(self, entry: RecipeEntry, options: SearchOptions, text: str) -> NDArray[np.float32]:
        if text != self._known:
            raise UsageError(f"text '{text}' has 65 tokens: shorten it")
        return self._direction


def test_words_find_volumes_by_keyboard(open_page: Open, served: Served, tmp_path: Path) -> None:
    volumes = synthetic_volumes(6)
    ids = [volume.volume_id for volume in volumes]
    rows = [row for seed, volume_id in enumerate(ids) for row in rows_of(volume_id, previews_of(volume_id, seed))]
    place = make_store(tmp_path / "store", volumes, recipe=recipe_of("medsiglip"), previews=rows).uri
    mean = volumes[2].vectors.astype(np.float32).mean(axis=0)
    live = LiveStores([place], encoders=_SomeWords("CT, a cyst", mean / np.linalg.norm(mean)))
    with serving(create_app(Service(live))) as server:
        assert server.client.get("/v1/snapshot").json()["models"][0]["text"] is True
        page = open_page(url=server.url, refusals=True)
        page.get_by_role("heading", name="6 volumes").wait_for()
        field = page.get_by_role("search").get_by_label("Or describe what you look for")
        assert field.get_attribute("aria-describedby") == "text-help"
        page.focus("#file")
        page.keyboard.press("Tab")
        page.keyboard.type("  CT, a cyst ")
        page.keyboard.press("Enter")
        hits = _hits(page)
        assert hits[0] == ids[2]
        expected = server.client.post("/v1/search", json={"text": "CT, a cyst"}).json()
        assert hits == [hit["volume_id"] for hit in expected["hits"]]
        assert _asked(page) == {"text": ["CT, a cyst"]}
        assert page.evaluate("document.activeElement.id") == "title"
        assert page.locator("#title").text_content() == "Most like CT, a cyst"
        assert page.get_by_role("status").text_content() == f"{len(hits)} hits"
        _all_drawn(page, ".hit img", len(hits))  # the hits alone have pictures
        page.reload()
        assert _hits(page) == hits
        assert page.locator("#text").input_value() == "CT, a cyst"

        page.fill("#text", "CT of all there is")
        page.get_by_role("button", name="Search", exact=True).click()
        assert "has 65 tokens: shorten it" in (page.get_by_role("alert").text_content() or "")
        page.go_back()
        assert _hits(page) == hits
        page.get_by_role("button", name="More like this").first.click()
        page.wait_for_url("**/?volume=*")
        assert "text" not in _asked(page)
        page.go_back()
        assert _hits(page) == hits
        page.get_by_role("button", name="Clear").click()
        page.get_by_role("heading", name="6 volumes").wait_for()
        assert _asked(page) == {}
    live.close()
    page = open_page()  # of a model without words
    page.get_by_role("heading", name="7 volumes").wait_for()
    assert page.locator("#text").count() == 0
    assert served.client.get("/v1/snapshot").json()["models"][0]["text"] is False


def test_a_hit_of_words_is_viewed_at_its_slice(
    open_page: Open, archive: Path, monkeypatch: pytest.MonkeyPatch, snapshots: Snapshots
) -> None:
    monkeypatch.setattr("medret.serve.endpoints.takes_words", lambda *_: True)
    direction = np.eye(1, snapshots.corpus.recipe(None).dim, dtype=np.float32)[0]
    store = snapshots.corpus.stores[0].uri
    live = LiveStores([store], archives={store: str(archive)}, encoders=_SomeWords("a lung", direction))
    with serving(create_app(Service(live))) as server:
        match = server.client.post("/v1/search", json={"text": "a lung"}).json()["hits"][0]["slices"]
        page = open_page("?text=a+lung", url=server.url)
        _all_drawn(page, ".hit img", len(_hits(page)))
        page.get_by_role("button", name="View", exact=True).first.click()
        page.locator(".pane .at").first.wait_for()
        assert _at(page) == match["hit"][:1]
        assert page.locator(".planes input:checked").input_value() == match["plane"]
        page.wait_for_load_state("networkidle")  # before the server is gone
    live.close()


def test_the_api_is_described_without_another_host(open_page: Open, served: Served) -> None:
    page = open_page("docs")
    page.get_by_text("/v1/search", exact=False).first.wait_for()
    assert page.locator(".opblock").count() >= 8
    for address in ("", "docs"):
        assert served.client.get(f"/{address}").headers["content-security-policy"] == POLICY


def test_a_file_chosen_again_keeps_its_part_and_another_does_not(
    open_page: Open, archive: Path, tmp_path: Path
) -> None:
    for name in ("mine.nii.gz", "other.nii.gz"):
        shutil.copy(archive / CHEST, tmp_path / name)
    page = open_page("?file=mine.nii.gz&box=0:9,0:9,0:5&modality=CT")
    page.set_input_files("#file", tmp_path / "mine.nii.gz")
    _hits(page)
    assert (_asked(page)["box"], _asked(page)["modality"]) == (["0:9,0:9,0:5"], ["CT"])
    page.set_input_files("#file", tmp_path / "other.nii.gz")
    page.get_by_role("heading", name="Most like other.nii.gz").wait_for()
    assert not {"box", "modality"} & _asked(page).keys()
