"""The API as OpenAPI describes it, kept beside this file: a change of it is a change for those who use it.

python -m tests.serve.test_openapi        writes it again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from medret._version import __version__
from medret.serve import LiveStores, Service, create_app
from tests.serve.conftest import GOLDEN

KEPT = Path(__file__).with_name("openapi.json")
ANY_VERSION = "any"


def described(document: dict[str, Any]) -> dict[str, Any]:
    """A description without the version of medret."""
    return document | {"info": document["info"] | {"version": ANY_VERSION}}


def test_the_description_is_the_kept_one(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["version"] == __version__
    assert described(document) == json.loads(KEPT.read_text()), "if this is meant: python -m tests.serve.test_openapi"


def test_all_that_holds_data_is_described(client: TestClient) -> None:
    """What the page alone uses is described too, and says how it may be refused."""
    paths = json.loads(KEPT.read_text())["paths"]
    assert all(path.startswith("/v1/") for path in paths)
    for operations in paths.values():
        for operation in operations.values():
            assert {"401", "403", "422", "503"} <= operation["responses"].keys()
            assert operation["summary"]


def write() -> None:
    """Write the description."""
    live = LiveStores([str(GOLDEN / "store")])
    document = described(create_app(Service(live)).openapi())
    KEPT.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
