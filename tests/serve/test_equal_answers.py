"""Over HTTP a search gives what `medret search --json` prints: the same hits and scores, and the same errors."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from medret.cli import main
from medret.search import SearchOptions
from medret.search.options import FUSIONS, MODES
from medret.serve import LiveStores, Service, create_app
from tests.search import conftest as stores

VOLUMES, PER_SHARD = 24, 7
WHERE = (
    "organ = 'Liver'",
    "organ in ('Lung', 'Brain') and subject <> 'subject-3'",
    "source like 'made%'",
    "organ = ''",
)
WRONG = ("organ = ", "colour = 'red'")


class Served:
    """Stores, and an application over them. folder: for vectors that the command reads from files."""

    def __init__(self, uris: list[str], ids: list[str], folder: Path) -> None:
        self.uris, self.ids, self._file = uris, ids, folder / "query.npy"
        self._client = TestClient(create_app(Service(LiveStores(uris))), base_url="http://localhost")

    def over_http(self, body: dict[str, Any]) -> tuple[int, Any]:
        """The status, and the hits or the reason."""
        answer = self._client.post("/v1/search", json=body)
        found = answer.json()
        return answer.status_code, found["hits"] if answer.is_success else found["reason"]

    def by_command(self, body: dict[str, Any]) -> tuple[int, Any]:
        """The exit code, and the hits or the message."""
        store, *others = self.uris
        arguments = ["search", store, self._query(body), "--json"]
        arguments += [f"--also={other}" for other in others]
        for name, value in body.items():
            option = "-k" if name == "k" else f"--{name.replace('_', '-')}"
            if name in ("model", "aggregation") and not isinstance(value, str):
                pairs = value.items() if isinstance(value, dict) else ((each, 1) for each in value)
                arguments += [f"{option}={each}={weight}" for each, weight in pairs]
            elif value is True:
                arguments.append(option)
            elif name not in ("volume", "store", "vector", "vectors", "symmetric"):
                arguments += [option, str(value)] if name == "k" else [f"{option}={value}"]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        return code, json.loads(out.getvalue())["hits"] if code == 0 else err.getvalue()

    def _query(self, body: dict[str, Any]) -> str:
        if volume := body.get("volume"):
            return f"{body['store']}#{volume}" if "store" in body else str(volume)
        np.save(self._file, np.array(body.get("vector") or body["vectors"], np.float32))
        return str(self._file)


@pytest.fixture(scope="module", params=[1, 3])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One store, or three that share a volume_id."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRET_CACHE", str(folder / "cache"))
        volumes = stores.synthetic_volumes(VOLUMES)
        parts = [volumes[number :: request.param] for number in range(request.param)]
        parts[-1] = tuple({volume.volume_id: volume for volume in (volumes[0], *parts[-1])}.values())
        uris = [
            stores.make_store(folder / f"store-{number}", part, per_shard=PER_SHARD).uri
            for number, part in enumerate(parts)
        ]
        yield Served(uris, [volume.volume_id for volume in volumes], folder)


def queries(uris: list[str], ids: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Queries: stored volumes, of a store by name too, and vectors."""
    unit = st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).standard_normal((3, stores.DIM)).tolist())
    return st.one_of(
        st.fixed_dictionaries({"volume": st.sampled_from([*ids, "no such volume"])}),
        st.just({"volume": ids[0], "store": uris[-1]}),
        unit.map(lambda vectors: {"vector": vectors[0]}),
        unit.map(lambda vectors: {"vectors": vectors}),
    )


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "k": st.integers(1, VOLUMES + 9),
    "index": st.sampled_from(["hnsw", "lsh", "exact"]),
    "mode": st.sampled_from(MODES),
    "fuse": st.sampled_from(FUSIONS),
    "aggregation": st.sampled_from(["max", "median", ["mean", "max"], {"mean": 0.7, "max": 0.3}]),
    "model": st.sampled_from([stores.recipe_of().model.name, "dinov3"]),
    "exclude": st.sampled_from(["none", "self", "subject", "organ", "colour"]),
    "where": st.sampled_from([*WHERE, *WRONG]),
    "per_slice": st.integers(1, 30),
    "candidates": st.integers(1, 30),
    "symmetric": st.booleans(),
    "expand": st.integers(0, 5),
    "slices": st.sampled_from(["10:40", "25:30", "70:80", "5"]),
    "plane": st.sampled_from(["axial", "sagittal"]),
    "query_slices": st.sampled_from(["uniform:2", "every:2", "every:30mm"]),
    "query_weights": st.sampled_from(["uniform", "gaussian:0.5,0.2"]),
}
ALWAYS = {"index", "mode"}
CALM = {"k", "fuse", "per_slice", "candidates", "symmetric", "query_weights"}  # no value of these is an error


@pytest.mark.parametrize("calm", [True, False], ids=["answers", "errors"])
def test_http_answers_as_the_command(served: Served, calm: bool) -> None:
    answered = set()

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(
        query=queries(served.uris, served.ids),
        options=st.fixed_dictionaries(
            {name: OPTIONS[name] for name in OPTIONS if name in ALWAYS},
            optional={name: OPTIONS[name] for name in OPTIONS if name not in ALWAYS and (not calm or name in CALM)},
        ),
    )
    def compare(query: dict[str, Any], options: dict[str, Any]) -> None:
        status, found = served.over_http(query | options)
        code, expected = served.by_command(query | options)
        answered.add(status)
        assert (status, code) in ((200, 0), (404, 2), (422, 2))
        if code == 0:
            assert found == expected
        else:
            assert found in expected

    compare()
    assert 200 in answered
    assert calm or 422 in answered


def test_what_is_not_there_is_not_found(served: Served) -> None:
    query = {"volume": "no such volume"}
    assert served.over_http(query)[0] == 404
    assert served.by_command(query)[0] == 2


def test_every_option_of_the_command_is_one_over_http(served: Served) -> None:
    """Those that a request cannot have name files of the caller's machine, or are the server's own."""
    own = {"mask", "weights", "device"}
    there = {field.name for field in fields(SearchOptions)}
    assert OPTIONS.keys() | own | {"box", "modality", "same_plane"} == there | {"k"}
    for name in own:
        assert served.over_http({"volume": served.ids[0], name: "x"})[0] == 422


@pytest.fixture(autouse=True)
def _no_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command takes a query that is the path of a file for the file: there is none here."""
    monkeypatch.chdir(tmp_path)
