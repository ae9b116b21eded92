"""An autoscaling Ray cluster on this machine: a head without CPUs, and worker nodes that come when they are needed.

Ray's own autoscaler runs, version 2, which `ray up` and KubeRay start too. Only the cloud is made up: each of its nodes
is a set of processes here.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from tests.processes import family, reap

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
HEAD_TYPE = "ray.head.default"  # the only one that the made-up cloud knows
START_S = 120.0
IDLE_S = 10.0
OBJECTS = 120 * 2**20


class Cloud(FakeMultiNodeProvider):
    """Ray's made-up cloud, with node ids that differ from their beginning, and for node types that state a memory."""

    def _next_hex_node_id(self) -> str:
        return secrets.token_hex(len(HEAD_ID) // 2)

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: Mapping[str, float], labels: Any
    ) -> None:
        without_memory = {name: value for name, value in resources.items() if name != "memory"}
        create: Any = super()._create_node_with_resources_and_labels
        create(node_config, tags, count, without_memory, labels)


class Cluster:
    """A running cluster. environment: for drivers."""

    def __init__(self, head: int, environment: dict[str, str]) -> None:
        self._head = head
        self.environment = environment

    def workers(self) -> list[int]:
        """The process ids of the worker nodes' raylets, the oldest first."""
        raylets = [pid for pid, name in family(self._head).items() if name.partition(" ")[0].endswith("/raylet")]
        return sorted(pid for pid in raylets if b"NODE_ID_FOR_TESTING=" + HEAD_ID.encode() not in _environment(pid))


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@contextmanager
def cluster(workers_most: int, resources: Mapping[str, float]) -> Iterator[Cluster]:
    """A cluster that rests at zero workers and grows to `workers_most` of these resources."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    environment = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    provider = {
        "type": "external", "module": f"{__name__}.Cloud", "gcs_address": f"127.0.0.1:{port}",
        "head_node_id": HEAD_ID, "launch_multiple": True, "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }  # fmt: skip
    worker = {"resources": {"memory": 4 * 2**30, "object_store_memory": OBJECTS, **resources}, "node_config": {}}
    lists = ("rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands", "cluster_synced_files")
    commands = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    config = {
        "cluster_name": "made-up", "max_workers": workers_most, "upscaling_speed": 100,
        "idle_timeout_minutes": IDLE_S / 60, "provider": provider, "head_node_type": HEAD_TYPE, "auth": {},
        "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker | {"min_workers": 0, "max_workers": workers_most},
        },
    } | {name: [] for name in (*lists, *commands)}  # fmt: skip
    # Sockets of Ray lie in the temporary folder: its path must be short.
    with tempfile.TemporaryDirectory(prefix="mr", ignore_cleanup_errors=True) as short:
        settings = Path(short, "cluster.json")
        settings.write_text(json.dumps(config))
        with Path(short, "head.log").open("wb") as log:
            head = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0",
                    f"--port={port}", f"--temp-dir={short}",
                    "--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--object-store-memory={OBJECTS}",
                    f"--autoscaling-config={settings}",
                ],
                env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            _wait_until_open(port, head, Path(short, "head.log"))
            driver = {name: value for name, value in environment.items() if "NODE_ID" not in name}
            yield Cluster(head.pid, driver | {"RAY_ADDRESS": f"127.0.0.1:{port}"})
        finally:
            reap(head.pid)
            head.wait()


def _wait_until_open(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"the head did not start:\n{log.read_text()}")
