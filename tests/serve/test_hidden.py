"""A token that may not see volumes is answered as if its store had never held them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from medret.search import VolumeName
from medret.serve import LiveStores, ServeSettings, Service, create_app, slice_pictures
from medret.serve.access import Tokens
from medret.volume import content_sha256
from tests.search import conftest as stores
from tests.serve.conftest import GOLDEN

MARK = "hidden"  # in every id, label and column of the volumes that must not be seen
TOKEN = "medret_of-site-a"
WHERE = "site = 'A'"


def token_file(path: Path, *, where: str | None = WHERE, token: str = TOKEN, more: str = "") -> Path:
    """A file of one token."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    lines = ["[[token]]", 'name = "site A"', f'sha256 = "{digest}"']
    path.write_text("\n".join([*lines, *([] if where is None else [f'where = "{where}"']), more, ""]))
    return path


@dataclass(frozen=True)
class Pair:
    """Asks a store that hides volumes from a token, and one that lacks them."""

    hiding: TestClient
    lacking: TestClient
    names: tuple[tuple[str, str], ...]  # what differs anyhow: the ids and places of the two stores

    def ask(self, method: str, path: str, **given: Any) -> tuple[int, str, dict[str, str]]:
        """The answer, which both gave."""
        answers = []
        for client in (self.hiding, self.lacking):
            ours, theirs = self.names[0]
            answer = client.request(method, path if client is self.hiding else path.replace(ours, theirs), **given)
            text = answer.text
            for ours, theirs in self.names:
                text = text.replace(ours, theirs)
            headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
            answers.append((answer.status_code, _rounded(text), headers))
        assert answers[0] == answers[1], f"{method} {path} {given}"
        return answers[0]


def _rounded(text: str) -> str:
    """JSON with numbers that two indices over the same vectors agree on."""
    try:
        return json.dumps(json.loads(text, parse_float=lambda digits: round(float(digits), 4)))
    except ValueError:
        return text


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    volumes, ledger = stores.synthetic_volumes(14), []
    for number, volume in enumerate(volumes):
        seen = number % 2 == 0
        volume_id = f"{'seen' if seen else MARK}/{number:02}.nii.gz"
        object.__setattr__(volume, "volume_id", volume_id)
        metadata = [("site", "A" if seen else f"{MARK}-site")] + ([] if seen else [(f"{MARK}_column", f"{MARK}-value")])
        ledger.append(
            stores.ledger_row(
                volume_id,
                subject=f"subject-{number // 4}",
                modality="CT" if seen else f"{MARK}-modality",
                organ="Liver" if number % 4 == 0 else None if seen else f"{MARK}-organ",
                metadata=metadata,
                content_sha256=f"{number:064x}",
                shards=[(stores.recipe_of().digest, "shard-0")],
            )
        )
    order = sorted(range(14), key=lambda at: volumes[at].volume_id)
    volumes, ledger = tuple(volumes[at] for at in order), [ledger[at] for at in order]
    kept = [at for at, volume in enumerate(volumes) if MARK not in volume.volume_id]
    hiding = stores.make_store(folder / "hiding", volumes, ledger=ledger)
    lacking = stores.make_store(
        folder / "lacking", tuple(volumes[at] for at in kept), ledger=[ledger[at] for at in kept]
    )
    tokens = Tokens(token_file(folder / "tokens.toml"))
    made = [LiveStores([store.uri]) for store in (hiding, lacking)]
    services = [
        Service(made[0], ServeSettings(device="cpu"), tokens=tokens),
        Service(made[1], ServeSettings(device="cpu")),
    ]
    base = "http://127.0.0.1"
    with (
        TestClient(create_app(services[0]), base_url=base, headers={"Authorization": f"Bearer {TOKEN}"}) as first,
        TestClient(create_app(services[1]), base_url=base) as second,
    ):
        created = [live.current.snapshots.manifests[live.current.ids[0]].created for live in made]
        names = ((hiding.uri, lacking.uri), (hiding.snapshot_id, lacking.snapshot_id), (created[0], created[1]))
        yield Pair(first, second, names)


SEEN, HIDDEN, UNKNOWN = "seen/00.nii.gz", f"{MARK}/01.nii.gz", "nowhere/01.nii.gz"


def test_a_search_shows_nothing_of_them(pair: Pair) -> None:
    modes = ("volume", "vote", "max", "sum", "late", "slice")
    for mode, index, exclude in itertools.product(modes, ("exact", "hnsw", "lsh"), ("none", "self", "subject")):
        asked = {"volume": SEEN, "k": 20, "mode": mode, "index": index, "exclude": exclude, "candidates": 4}
        status, text, _ = pair.ask("POST", "/v1/search", json=asked)
        assert status == 200
        assert MARK not in text
    for where in (f"site = '{MARK}-site'", f"organ <> '{MARK}-organ'", "organ is null", "site = 'A' or site <> 'A'"):
        pair.ask("POST", "/v1/search", json={"volume": SEEN, "where": where})
    for vector in ([1.0] * stores.DIM, [0.0] * stores.DIM, [1.0]):
        assert MARK not in pair.ask("POST", "/v1/search", json={"vector": vector, "k": 20})[1]


def test_lists_counts_and_columns_show_nothing_of_them(pair: Pair) -> None:
    for path in (
        "/v1/snapshot",
        "/v1/volumes",
        "/v1/volumes?facets=true",
        "/v1/volumes?limit=2",
        "/v1/map",
        "/v1/map?label=organ",
    ):
        status, text, _ = pair.ask("GET", path)
        assert status == 200
        assert MARK not in text, path
    assert '"volumes": 7' in pair.ask("GET", "/v1/snapshot")[1]
    for contains, after in ((MARK, None), ("nii", f"0:{HIDDEN}"), ("", f"0:{SEEN}"), ("", "1:x")):
        given = {"contains": contains} | ({} if after is None else {"after": after})
        pair.ask("GET", "/v1/volumes", params=given)


@pytest.mark.parametrize("volume_id", [SEEN, HIDDEN, UNKNOWN])
def test_a_hidden_volume_is_as_unknown_as_one_that_is_not_there(pair: Pair, volume_id: str) -> None:
    expected = 200 if volume_id == SEEN else 404
    texts = [pair.ask("GET", f"/v1/volumes/{volume_id}")]
    texts.append(pair.ask("POST", "/v1/search", json={"volume": volume_id}))
    assert [status for status, *_ in texts] == [expected, expected]
    store = next(iter(pair.names))[0]
    pair.ask("GET", f"/v1/volumes/{store}%23{volume_id}")
    pair.ask("GET", f"/v1/volumes/{volume_id}", params={"store": "elsewhere"})
    pair.ask("GET", "/v1/view", params={"volume": volume_id})
    for number in ("0", "9", "x"):
        pair.ask("GET", f"/v1/volumes/{volume_id}/previews/{number}")
    for plane, index, options in (("axial", 0, ""), ("axial", 999, ""), ("oblique", 0, ""), ("axial", 0, "?side=9")):
        pair.ask("GET", f"/v1/volumes/{volume_id}/slices/{plane}/{index}.png{options}")
    for part in ({"box": "0:1,0:1,0:1"}, {"slices": "1:20"}, {"query_slices": "uniform:2"}, {"store": "x"}):
        pair.ask("POST", "/v1/search", json={"volume": volume_id, **part})
    if volume_id != SEEN:
        unknown, hidden = (pair.ask("GET", f"/v1/volumes/{each}")[1].replace(each, "") for each in (UNKNOWN, HIDDEN))
        assert unknown == hidden


def test_errors_speak_of_what_is_seen_alone(pair: Pair) -> None:
    for where in (f"{MARK}_column = 'x'", "no_column = 'x'", "organ = 1", "subject < 5", "organ =", "organ = 'x' or 1"):
        for method, path, given in (
            ("POST", "/v1/search", {"json": {"volume": SEEN, "where": where}}),
            ("GET", "/v1/volumes", {"params": {"where": where}}),
        ):
            status, text, _ = pair.ask(method, path, **given)
            assert status == 422
            assert MARK not in text.replace(f"{MARK}_column = 'x'", "").replace(f"'{MARK}_column'", "")
    for exclude in (f"{MARK}_column", "no_column", "site", "organ"):
        pair.ask("POST", "/v1/search", json={"volume": SEEN, "exclude": exclude})


def test_a_file_with_the_bytes_of_a_hidden_volume_is_a_file_like_any_other(
    live: LiveStores, archive: Path, tmp_path: Path
) -> None:
    tokens = Tokens(token_file(tmp_path / "tokens.toml", where="modality = 'MRI'"))
    service = Service(live, ServeSettings(device="cpu"), tokens=tokens)
    data = (archive / "chest_ct/0.nii.gz").read_bytes()
    digest = content_sha256(data)
    assert live.current.view(None).corpus.with_content(digest) == [("chest_ct/0.nii.gz", 0)]
    assert live.current.view("modality = 'MRI'").corpus.with_content(digest) == []
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        answers = []
        for each in (data, data + bytes(8)):  # the second has no twin in the store
            for path in ("search", "slices"):
                given = {"options": '{"exclude": "self"}'}
                answer = client.post(f"/v1/{path}", files={"file": ("case.nii.gz", each)}, data=given)
                assert answer.status_code == 200
                assert "chest_ct" not in answer.text
                answers.append(_rounded(answer.text))
        assert answers[:2] == answers[2:]
        assert len(json.loads(answers[0])["hits"]) == 4


def test_a_filter_that_fits_no_more_lets_nothing_through(live: LiveStores, tmp_path: Path) -> None:
    tokens = Tokens(token_file(tmp_path / "tokens.toml", where="no_such_column = 'A'"))
    service = Service(live, ServeSettings(device="cpu"), tokens=tokens)
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        for method, path in (("GET", "/v1/snapshot"), ("GET", "/v1/volumes"), ("GET", "/v1/volumes/chest_ct/0.nii.gz")):
            answer = client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (403, "no_access")
            assert "column" not in answer.text


def test_paths_lead_nowhere_else(client: TestClient) -> None:
    secret = (GOLDEN / "store" / "CURRENT").read_text().strip()
    for path in (
        "..%2f..%2ftests%2fgolden%2fstore%2fCURRENT",
        "../../../CURRENT",
        "%2fetc%2fpasswd",
        "..%5c..%5cCURRENT",
    ):
        for place in ("/page/", "/v1/volumes/", "/"):
            answer = client.get(f"{place}{path}")
            assert answer.status_code == 404, (place, path)
            assert secret not in answer.text
            assert "root:" not in answer.text


def test_what_is_kept_of_a_volume_is_not_shown_for_its_namesake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stores may hold volumes of one name, of which each caller may see one."""
    monkeypatch.setattr(slice_pictures, "read_volume_query", lambda place: place)
    monkeypatch.setattr(
        slice_pictures, "view_volume", lambda place, *_, **__: SimpleNamespace(size_bytes=1, place=place)
    )
    name, row = VolumeName("case/1.nii.gz"), SimpleNamespace(labels={"modality": "CT"})
    stores = [SimpleNamespace(readable=lambda _, place=place: place) for place in ("A", "B")]

    def seen_by(caller: int) -> Any:
        corpus = SimpleNamespace(stores=stores, find=lambda _: ((name.volume_id, caller), row))
        recipe = SimpleNamespace(digest="d", slices=None)
        return SimpleNamespace(manifests=dict.fromkeys("ab"), recipe=lambda: recipe, corpus=corpus)

    pictures: Any = slice_pictures.SlicePictures(1 << 20)
    assert [pictures.view(seen_by(caller), name).place for caller in (0, 1, 0)] == ["A", "B", "A"]
