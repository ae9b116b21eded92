"""A server over the golden store, with its archive behind it: asked in this process, or over a real socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from medret.search import Snapshots
from medret.serve import LiveStores, ServeSettings, Service, create_app

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Served:
    """A server on loopback. url: without a slash at its end."""

    url: str
    client: httpx.Client


@contextmanager
def serving(app: FastAPI) -> Iterator[Served]:
    """An application in uvicorn, at a free port of loopback, until the context ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                yield Served(url, client)  # the socket listens already: a request waits for the server
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="session")
def archive() -> Path:
    """The archive behind the served store: tiny volumes with real voxels."""
    return GOLDEN / "archive"


@pytest.fixture(scope="session")
def live(archive: Path) -> Iterator[LiveStores]:
    """The golden store, opened once: seven volumes of a model with random weights."""
    stores = LiveStores([str(GOLDEN / "store")], archives={str(GOLDEN / "store"): str(archive)})
    yield stores
    stores.close()


@pytest.fixture(scope="session")
def snapshots(live: LiveStores) -> Snapshots:
    """What is served, to be asked without HTTP."""
    return live.current.snapshots


@pytest.fixture(scope="session")
def make_app(live: LiveStores) -> Callable[..., FastAPI]:
    """Make an application over the golden store: one per event loop. Keywords: those of `ServeSettings`."""
    return lambda **settings: create_app(Service(live, ServeSettings(device="cpu", **settings)))


@pytest.fixture(scope="session")
def client(make_app: Callable[..., FastAPI]) -> Iterator[TestClient]:
    """Asks the application in this process."""
    with TestClient(make_app(), base_url="http://127.0.0.1") as asking:
        yield asking


@pytest.fixture(scope="session")
def served(make_app: Callable[..., FastAPI]) -> Iterator[Served]:
    """The application in uvicorn on loopback."""
    with serving(make_app()) as server:
        yield server
