"""What tests share: data, a local Ray, an S3 server on loopback, and no way out of this machine."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from medret.demo.phantoms import KINDS, write_phantom
from tests.failing_s3 import FailingProxy

# Before anything imports transformers, timm or ray, and inherited by Ray's workers: no test asks a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_METADATA_PREFETCH_ON_THREAD"] = "0"  # as in a run: medret.pipeline.connect
os.environ["RAY_idle_worker_killing_time_threshold_ms"] = "600000"  # noqa: SIM112  # Ray spells it so

# How long an example takes says how busy the machine is.
settings.register_profile("medret", deadline=None)
settings.load_profile("medret")

# What a process takes as one piece: the tests that share a Ray, and the campaigns, which have clusters of their own.
SHARED_RAY = tuple(f"tests/{name}" for name in ("demo/", "pipeline/", "test_golden.py", "test_readme.py"))
CAMPAIGNS = "tests/chaos/"
BENCHMARKS = "tests/bench/"


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """`make test` runs two processes. Each takes the next piece when it is done with one: most pieces are files."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(SHARED_RAY):
            return "with a shared Ray"
        return CAMPAIGNS if nodeid.startswith(CAMPAIGNS) else nodeid.partition("::")[0]


def _turn(item: pytest.Item) -> int:
    """The longest pieces come first, one for each process, and the benchmarks last: not beside the campaigns."""
    return 0 if item.nodeid.startswith((*SHARED_RAY, CAMPAIGNS)) else 2 if item.nodeid.startswith(BENCHMARKS) else 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pieces are taken in the order of their tests."""
    items.sort(key=_turn)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Files go to the processes in the order in which they are collected."""
    config.option.loadscopereorder = False
    return _ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The shared Ray ends with the last test that may need it: idle, its processes slow the others down."""
    if nextitem is not None and _turn(item) == 0 < _turn(nextitem) and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    """Fail a TCP connection from this process to anything but this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        is_tcp = self.family in (socket.AF_INET, socket.AF_INET6) and self.type & socket.SOCK_STREAM
        if is_tcp and not _is_this_machine(address[0]):
            raise RuntimeError(f"a test tried to connect to {address[0]}:{address[1]}; tests stay on this machine")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))  # only an own address can be bound
    except (OSError, ValueError):
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Weights are staged in a cache of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRET_CACHE", str(tmp_path_factory.mktemp("medret-cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real volumes, where they lie beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real volumes in ../shared/data")
    return folder.resolve()


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of two small volumes of each kind, `<kind>/<kind>_<number>.nii.gz`, with `labels.csv` beside it."""
    folder = tmp_path_factory.mktemp("phantoms")
    rows = ["path,subject,modality,body_region,organ"]
    for kind in KINDS.values():
        for number in range(2):
            path = f"{kind.name}/{kind.name}_{number}.nii.gz"
            write_phantom(folder / "archive" / path, kind.name, number, shape=(48, 40, 24))
            rows.append(f"{path},{kind.name}-{number},{kind.modality},{kind.body_region},{kind.organ}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "archive"


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[FailingProxy]:
    """An S3 server on loopback behind a proxy; its address and credentials stand in the environment, for s3fs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = FailingProxy(server.get_host_and_port()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.delenv(name, raising=False)
        yield proxy
    proxy.close()
    server.stop()


@pytest.fixture
def failing_s3(s3_proxy: FailingProxy) -> Iterator[FailingProxy]:
    """The S3 server of the session, of which one request in ten goes wrong."""
    s3_proxy.rate = 0.1
    s3_proxy.failed.clear()
    yield s3_proxy
    s3_proxy.rate = 0.0


@pytest.fixture(scope="session")
def s3_server(s3_proxy: FailingProxy) -> str:
    """The address of the S3 server."""
    return s3_proxy.address


@pytest.fixture(scope="session")
def s3(s3_server: str) -> Callable[[str], str]:
    """Make a bucket: `s3("archive")` returns the URI of a new, empty one."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_server)

    def bucket(name: str) -> str:
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        client.create_bucket(Bucket=unique)
        return f"s3://{unique}"

    return bucket


@pytest.fixture(scope="session")
def ray_session(s3_server: str) -> Iterator[None]:
    """A local Ray of two CPUs for the whole run; its workers reach the S3 server."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=300 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()
