"""The nodes of the cluster: what they offer now, and which of them the run loses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.core.generated import common_pb2

from medret.pipeline.pools import Capacity

Node = dict[str, Any]  # as `ray.nodes()` returns it

LOOK_EVERY_S = 2.0
PROBE_S = 0.5
LET_GO: int = common_pb2.NodeDeathInfo.AUTOSCALER_DRAIN_IDLE  # type: ignore[attr-defined]  # nobody needed it


def capacity_of(nodes: list[Node], *, grows: bool) -> Capacity:
    """The resources of the nodes that are alive. grows: see Capacity."""
    offers = [(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes if node["Alive"]]
    cpus, gpus = sum(cpus for cpus, _ in offers), sum(gpus for _, gpus in offers)
    smallest = min((cpus for cpus, _ in offers if cpus), default=1.0)
    per_gpu = min((cpus / gpus for cpus, gpus in offers if gpus), default=0.0)
    return Capacity(cpus, gpus, smallest, per_gpu, grows)


def largest_memory(nodes: list[Node]) -> int:
    """The bytes that the largest node that works offers to tasks; 0 if there is none."""
    working = (node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU"))
    return int(max((offer.get("memory", 0.0) for offer in working), default=0.0))


@contextmanager
def looking(look: Callable[[list[Node]], None]) -> Iterator[None]:
    """Call `look` with the nodes of the cluster every two seconds while the block runs, and once at its end."""
    over = threading.Event()

    def keep_looking() -> None:
        ended = False
        while True:
            with suppress(Exception):  # a failed look must not end the run
                look(ray.nodes())
            if ended:
                return
            ended = over.wait(LOOK_EVERY_S)

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


@contextmanager
def watching_nodes(warn: Callable[[str], None]) -> Iterator[list[str]]:
    """Warn of every node that is lost while the block runs. Yields the growing list of their names."""
    watch = NodeWatch(warn, answers)
    with looking(watch.look):
        yield watch.lost


def name_of(node: Node) -> str:
    """How lines and reports name a node: its address and the beginning of its id."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


class NodeWatch:
    """What is known about the nodes. lost: names of nodes that were alive and are not any more.

    Ray takes a quarter of a minute to declare a node dead. A node whose port answered before and now refuses is dead.
    A node that the autoscaler let go is not lost. Ray knows it as dead before its port refuses, so `read_again` (like
    `ray.nodes`) tells the two apart.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        answers: Callable[[Node], bool | None],
        read_again: Callable[[], list[Node]] = ray.nodes,
    ) -> None:
        self._warn = warn
        self._answers = answers
        self._read_again = read_again
        self._seen: dict[str, Node] = {}
        self._answered: set[str] = set()
        self.lost: list[str] = []

    def look(self, nodes: list[Node]) -> None:
        """Compare with the last look. nodes: as `ray.nodes()` returns them."""
        alive = {node["NodeID"]: node for node in nodes if node["Alive"] and not self._refuses(node)}
        gone = self._seen.keys() - alive.keys()
        let_go = {node["NodeID"] for node in (self._read_again() if gone else ()) if node.get("DeathReason") == LET_GO}
        lost = [node for name, node in self._seen.items() if name in gone - let_go]
        self._seen = alive
        cpus = sum(node["Resources"].get("CPU", 0) for node in alive.values())
        left = f"{len(alive)} are left, with {cpus:g} CPUs" if cpus else "none that can work is left; waiting for one"
        for node in lost:
            self.lost.append(name_of(node))
            self._warn(
                f"lost node {name_of(node)} of the cluster; what it had not finished is done again on others; {left}"
            )

    def _refuses(self, node: Node) -> bool:
        answers = self._answers(node)
        if answers:
            self._answered.add(node["NodeID"])
        return answers is False and node["NodeID"] in self._answered


def answers(node: Node) -> bool | None:
    """True if the port of a node accepts connections, False if it refuses them, None if it does not answer."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=PROBE_S):
            return True
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
