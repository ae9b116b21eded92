"""jobs/serve.py on a local Ray: it answers as the plain application does, and outlives its replicas."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from medret.errors import UsageError
from medret.search import SearchOptions
from medret.serve import LiveStores, ServeSettings, Service, create_app
from medret.serve.access import Tokens

GOLDEN = Path(__file__).parents[1] / "golden"
STORE = str(GOLDEN / "store")
HEADERS = {"Authorization": "Bearer secret"}
CLIENTS, REPLICAS = 4, 2
WAIT_S = 120

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of Ray Serve's own
]


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(f'[[token]]\nname = "reader"\nsha256 = "{hashlib.sha256(b"secret").hexdigest()}"\n')
    return path


@pytest.fixture(scope="module")
def on_ray(token_file: Path, ray_session: None) -> Iterator[str]:
    """The address of the application on Ray Serve, with two replicas and one encoder."""
    from ray import serve

    from jobs.serve import build

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments: dict[str, Any] = {"stores": STORE, "token_file": str(token_file), "archive": str(GOLDEN / "archive")}
    serve.run(build(arguments | {"replicas": [REPLICAS, REPLICAS], "cpus": 0, "encoder_cpus": 0}), name="medret")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def plain(token_file: Path) -> Iterator[TestClient]:
    live = LiveStores([STORE], archives={STORE: str(GOLDEN / "archive")})
    app = create_app(Service(live, ServeSettings(device="cpu"), tokens=Tokens(token_file)))
    with TestClient(app, headers=HEADERS) as client:
        yield client


def test_it_answers_as_the_plain_application(on_ray: str, plain: TestClient) -> None:
    volume = plain.get("/v1/volumes").json()["volumes"][0]["volume_id"]
    with httpx.Client(base_url=on_ray, headers=HEADERS, timeout=WAIT_S) as client:
        for path in ("/v1/snapshot", "/v1/volumes?facets=true", f"/v1/volumes/{volume}", "/openapi.json"):
            assert client.get(path).json() == plain.get(path).json()
        for mode in ("volume", "late", "slice", "none of these"):
            answers = [asked.post("/v1/search", json={"volume": volume, "mode": mode}) for asked in (client, plain)]
            assert answers[0].json() == answers[1].json()
            assert answers[0].status_code == answers[1].status_code
        file = (GOLDEN / "archive" / volume).read_bytes()
        found, expected = (asked.post("/v1/search", files={"file": file}) for asked in (client, plain))
        assert found.status_code == 200, found.text
        assert [hit["volume_id"] for hit in found.json()["hits"]] == [
            hit["volume_id"] for hit in expected.json()["hits"]
        ]
        scores = [[hit["score"] for hit in answer.json()["hits"]] for answer in (found, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        damaged = client.post("/v1/search", files={"file": b"no volume"})
        assert (damaged.status_code, damaged.json()["code"]) == (422, "not_nifti")
        del client.headers["Authorization"]
        assert client.get("/v1/snapshot").status_code == 401


def test_a_killed_replica_takes_only_the_requests_that_it_held(on_ray: str) -> None:
    import ray

    stop, answered = threading.Event(), threading.Semaphore(0)

    def ask(_: int) -> list[bool]:
        """Whether each request was answered, in their order."""
        results = []
        with httpx.Client(base_url=on_ray, headers=HEADERS, timeout=WAIT_S) as client:
            while not stop.is_set():
                results.append(client.get("/v1/snapshot").status_code == 200)
                answered.release()
        return results

    def wait_for(requests: int) -> None:
        for _ in range(requests):
            assert answered.acquire(timeout=WAIT_S)

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            wait_for(5 * CLIENTS)
            named = ray.util.list_named_actors(all_namespaces=True)
            replicas = [each for each in named if "#Answers#" in each["name"]]
            assert len(replicas) == REPLICAS
            ray.kill(ray.get_actor(replicas[0]["name"], namespace=replicas[0]["namespace"]))
            wait_for(50 * CLIENTS)
        finally:
            stop.set()
        results = [future.result(WAIT_S) for future in asking]
    assert all(each.count(False) <= 1 for each in results), "a client has one request under way at a time"
    assert all(each[-1] for each in results)


def test_the_manifest_configures_what_there_is() -> None:
    from ray.serve.schema import ServeDeploySchema

    from jobs.serve import Arguments

    *_, service = yaml.safe_load_all((GOLDEN.parents[1] / "deploy" / "rayservice.yaml").read_text())
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = config.applications
    arguments = Arguments.model_validate(application.args)
    assert arguments.replicas[0] > 1, "one may be lost"
    assert arguments.gpus > 0


def test_wrong_arguments_are_named() -> None:
    from jobs.serve import build

    with pytest.raises(UsageError, match=r"argument token_file: .*; there are stores, token_file"):
        build({"stores": STORE})
    with pytest.raises(UsageError, match="argument store: "):
        build({"stores": STORE, "token_file": "tokens.toml", "store": STORE})


def test_words_go_to_the_encoders_too() -> None:
    from jobs.serve import RemoteEncoders

    asked = []

    def remote(_: object, *given: object) -> Any:
        asked.append(given)
        return SimpleNamespace(result=lambda timeout_s: np.ones(2, np.float32))

    handle: Any = SimpleNamespace(directions=SimpleNamespace(remote=remote))
    entry: Any = SimpleNamespace(model="medsiglip")
    options = SearchOptions(weights="towers.safetensors")
    assert RemoteEncoders(handle).directions(entry, options, "liver").tolist() == [1, 1]
    assert asked == [("towers.safetensors", "liver")]
