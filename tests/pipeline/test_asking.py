"""Which device a run takes, what it waits for, and what it asks an autoscaler for."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from medret.errors import UnreachableError, UsageError
from medret.pipeline.cluster import Node, find_device, missing
from medret.pipeline.pools import Expected, Wish

HEAD: Node = {"Alive": True, "Resources": {"node:__internal_head__": 1.0}}
CPU_NODE: Node = {"Alive": True, "Resources": {"CPU": 16.0}}
GPU_NODE: Node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}


class Cluster:
    """In place of Ray: nodes come as soon as a run waits for them, if `coming` has them."""

    def __init__(self, nodes: list[Node], coming: list[Node], *, autoscales: bool) -> None:
        self.nodes, self.coming, self.autoscales = nodes, coming, autoscales
        self.waited: list[tuple[str, float]] = []

    def offered(self, wish: Wish, _wait_s: float, *, sure: bool, autoscales: bool) -> str | None:
        assert wish.gpus
        has = any(node["Resources"].get("GPU") for node in self.coming)
        return "task" if sure or (autoscales and has) else None

    def wait_for(self, _task: str, what: str, wait_s: float, _say: Any) -> None:
        self.waited.append((what, wait_s))
        if not self.coming:
            raise UnreachableError("none came")
        self.nodes = [*self.nodes, *self.coming]


def found(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, wanted: str, expected: Expected | None = None, minutes: float = 5
) -> tuple[str, float]:
    """The device, and the CPUs that are there then."""
    monkeypatch.setattr(ray, "nodes", lambda: cluster.nodes)
    monkeypatch.setattr("medret.pipeline.cluster._status", lambda: None)
    monkeypatch.setattr("medret.pipeline.cluster.autoscaler_answers", lambda _: cluster.autoscales)
    monkeypatch.setattr("medret.pipeline.cluster.offered", cluster.offered)
    monkeypatch.setattr("medret.pipeline.cluster.waiting_task", lambda _: "task")
    monkeypatch.setattr("medret.pipeline.cluster.wait_for", cluster.wait_for)
    device, capacity = find_device(wanted, expected or Expected(), minutes, lambda _: None)
    return device, capacity.cpus


@pytest.mark.parametrize(
    ("there", "coming", "autoscales", "wanted", "device", "waited"),
    [
        ([CPU_NODE], [], False, "auto", "cpu", []),
        ([CPU_NODE, GPU_NODE], [], False, "auto", "cuda", []),
        ([CPU_NODE, GPU_NODE], [], False, "cpu", "cpu", []),
        ([CPU_NODE], [], True, "auto", "cpu", []),  # the autoscaler has no node type with a GPU
        ([CPU_NODE], [GPU_NODE], True, "auto", "cuda", ["a GPU"]),
        ([HEAD], [GPU_NODE], True, "auto", "cuda", ["a GPU"]),
        ([HEAD], [CPU_NODE], True, "auto", "cpu", ["a CPU"]),
        ([HEAD], [CPU_NODE], False, "auto", "cpu", ["a CPU"]),  # its workers are still starting
        ([HEAD], [GPU_NODE], True, "cpu", "cpu", ["a CPU"]),
    ],
)
def test_auto_takes_a_gpu_that_is_there_or_can_come(
    monkeypatch: pytest.MonkeyPatch, there: list[Node], coming: list[Node], *, autoscales: bool, wanted: str,
    device: str, waited: list[str],
) -> None:  # fmt: skip
    cluster = Cluster(there, coming, autoscales=autoscales)
    assert found(monkeypatch, cluster, wanted)[0] == device
    assert cluster.waited == [(what, 300.0) for what in waited]


def test_what_the_user_expects_counts_where_no_autoscaler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([CPU_NODE], [GPU_NODE], autoscales=False)
    assert found(monkeypatch, cluster, "auto", Expected(gpus=1)) == ("cuda", 24.0)


def test_a_node_that_does_not_come_ends_the_run_and_never_the_head_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ("auto", "cpu", "cuda"):
        expected = Expected(gpus=1) if wanted == "cuda" else None
        with pytest.raises(UnreachableError):
            found(monkeypatch, Cluster([HEAD], [], autoscales=True), wanted, expected)


def test_cuda_where_no_gpu_can_come_is_never_a_silent_cpu_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="has no GPU"):
        found(monkeypatch, Cluster([CPU_NODE], [], autoscales=False), "cuda")


def test_who_does_not_wait_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, Cluster([CPU_NODE], [GPU_NODE], autoscales=True), "auto", minutes=0)[0] == "cpu"


def test_places_that_the_cluster_lacks() -> None:
    dead = CPU_NODE | {"Alive": False}
    assert missing(Wish(0.9412, 0.0, 40), [HEAD, CPU_NODE, CPU_NODE, dead]) == 8
    assert missing(Wish(1.0, 1.0, 2), [HEAD, CPU_NODE, GPU_NODE]) == 1
    assert missing(Wish(1.0, 1.0, 1), [GPU_NODE]) == 0
