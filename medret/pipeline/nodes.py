"""The cluster's nodes while a run goes on: one that is lost is told in one line, and costs nothing but time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

LOOK_EVERY_S = 2.0
PROBE_S = 0.5


@contextmanager
def watching_nodes(warn: Callable[[str], None]) -> Iterator[list[str]]:
    """Tell of every node that is lost while the block runs; gives the list of them, which grows."""
    watch = NodeWatch(warn, answers)
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(watch, over), daemon=True)
    thread.start()
    try:
        yield watch.lost
    finally:
        over.set()
        thread.join(timeout=10)


class NodeWatch:
    """What is known of the nodes. lost: names of those that were seen alive and are not any more.

    Ray takes a quarter of a minute to call a node dead. One whose port answered and now refuses is dead at once.
    """

    def __init__(self, warn: Callable[[str], None], answers: Callable[[dict[str, Any]], bool | None]) -> None:
        self._warn = warn
        self._answers = answers
        self._seen: dict[str, dict[str, Any]] = {}
        self._answered: set[str] = set()
        self.lost: list[str] = []

    def look(self, nodes: list[dict[str, Any]]) -> None:
        """nodes: as `ray.nodes()` gives them."""
        alive = {node["NodeID"]: node for node in nodes if node["Alive"] and not self._refuses(node)}
        gone = [node for name, node in self._seen.items() if name not in alive]
        self._seen = alive
        cpus = sum(node["Resources"].get("CPU", 0) for node in alive.values())
        left = f"{len(alive)} are left, with {cpus:g} CPUs" if cpus else "none that can work is left; waiting for one"
        for node in gone:
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            self.lost.append(name)
            self._warn(f"lost node {name} of the cluster; what it had not finished is done again on others; {left}")

    def _refuses(self, node: dict[str, Any]) -> bool:
        answers = self._answers(node)
        if answers:
            self._answered.add(node["NodeID"])
        return answers is False and node["NodeID"] in self._answered


def answers(node: dict[str, Any]) -> bool | None:
    """Whether a node's port accepts connections, or refuses them; None if neither is to be had."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=PROBE_S):
            return True
    except ConnectionRefusedError:
        return False
    except OSError:
        return None


def _look(watch: NodeWatch, over: threading.Event) -> None:
    ended = False
    while True:
        with suppress(Exception):  # a look that fails costs a line, never the run
            watch.look(ray.nodes())
        if ended:
            return
        ended = over.wait(LOOK_EVERY_S)
