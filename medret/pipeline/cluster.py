"""The cluster's size and its nodes: how many actors of what size fit it, and which nodes it loses."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray

from medret.errors import UsageError

# A read task asks for a whole CPU where the cluster has at least this many, else for a share of one.
WHOLE_CPU_FROM = 2
SMALLEST_PARTS = 10_000  # into which Ray divides a CPU
BUSY_SHARE = 0.9  # of a core's time: an actor that needs more gets company
LOOK_EVERY_S = 2.0
PROBE_S = 0.5


@dataclass(frozen=True)
class Capacity:
    """What the cluster has at the start. node_cpus: CPUs of its smallest node that has any."""

    cpus: float
    gpus: float
    node_cpus: float


@dataclass(frozen=True)
class PoolPlan:
    """The embedding pool of each model, and the CPU that a read task asks for.

    sizes: actors of each model. num_cpus, num_gpus: Ray resources an actor. threads: torch threads an actor.
    """

    sizes: tuple[int, ...]
    num_cpus: float
    num_gpus: float
    threads: int
    read_cpus: float


def plan_pools(
    capacity: Capacity,
    costs: Sequence[float],
    device: str,
    *,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
) -> PoolPlan:
    """How many actors each model gets and of what size, so that every pool can start and reading never starves.

    costs: what a slice costs each model, in any unit; 0 where it is not known, which counts as the dearest. All models
    see every slice, so their actors are shared out in proportion: a run is as fast as its slowest pool.
    Actors that take all CPUs deadlock the reads, so at least a quarter of them (one, on a small machine) stays free.
    Raises UsageError if what was asked for does not fit.
    """
    models, dearest = len(costs), max(costs) or 1.0
    costs = [cost or dearest for cost in costs]
    is_one_machine = capacity.node_cpus >= capacity.cpus
    # Of several nodes, any may be lost: what is left must still hold a read task beside all actors.
    read_cpus = 1.0 if capacity.node_cpus >= WHOLE_CPU_FROM else capacity.node_cpus / (4 if is_one_machine else 2)
    if device == "cuda":
        share = gpus_per_actor or 1 / math.ceil(models / capacity.gpus)
        places = _places(capacity.gpus, share)
        sizes = (actors,) * models if actors else allot(places, costs)
        if sum(sizes) > places:
            raise UsageError(
                f"{models} models x {max(sizes)} actors x {share:g} GPU do not fit the cluster's {capacity.gpus:g} "
                "GPUs; lower --actors or --gpus-per-actor"
            )
        num_cpus = min(1.0, (capacity.cpus - read_cpus) / sum(sizes))
        return PoolPlan(sizes, num_cpus, share, max(1, int(num_cpus)), read_cpus)
    # Two processes of one thread embed 1.5 times as many slices as one of two threads. On one machine each core has
    # one, and reading takes what it needs from what they do not ask for. On several, actors ask for so little that all
    # of them fit beside a read task on the smallest node: wherever they are placed, and whichever nodes are lost, some
    # node has room for reading. Ray spreads them; what is left of a lost node's actors crowds together.
    budget = capacity.cpus - max(read_cpus, 0.25 * capacity.cpus)
    if actors:
        sizes = (actors,) * models
    elif is_one_machine:
        sizes = tuple(_on_one_machine(capacity.cpus * cost / sum(costs), capacity.cpus) for cost in costs)
    else:
        sizes = allot(int(budget), costs)
    threads = max(1, int(min(capacity.cpus / sum(sizes), capacity.node_cpus)))
    num_cpus = (budget if is_one_machine else capacity.node_cpus - read_cpus) / sum(sizes)
    return PoolPlan(sizes, _asked(num_cpus), 0.0, threads, read_cpus)


def _asked(cpus: float) -> float:
    """What Ray can count: whole CPUs from one on, below that hundredths, or its smallest part."""
    parts = 1 if cpus >= 1 else 100 if cpus >= 0.01 else SMALLEST_PARTS
    return max(math.floor(parts * cpus), 1) / parts


def _places(gpus: float, share: float) -> int:
    """How many actors fit: a GPU is shared by whole actors only."""
    return int(gpus) * int(1 / share + 1e-9) if share < 1 else int(gpus / share + 1e-9)


def allot(places: int, costs: Sequence[float]) -> tuple[int, ...]:
    """So many actors in all, at least one for each model: the next goes to the model whose actors have most to do."""
    sizes = [1] * len(costs)
    while sum(sizes) < places:
        sizes[max(range(len(costs)), key=lambda at: costs[at] / sizes[at])] += 1
    return tuple(sizes)


def _on_one_machine(cores: float, cpus: float) -> int:
    """Actors of a model that needs the time of so many cores.

    Actors of several models take turns: one that needs nearly all of a core's time would seldom get it.
    """
    return max(1, min(int(cpus), math.ceil(cores / BUSY_SHARE)))


def capacity_now() -> Capacity:
    """The connected cluster's resources."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node.get("CPU", 0.0) for node in nodes]
    return Capacity(sum(cpus), sum(node.get("GPU", 0.0) for node in nodes), min((c for c in cpus if c), default=1.0))


def device_for(wanted: str, capacity: Capacity) -> str:
    """`cpu` or `cuda`; asking for cuda on a cluster without a GPU is an error, never a silent CPU run."""
    if wanted == "cuda" and capacity.gpus <= 0:
        raise UsageError(
            "--device cuda was asked for, but the Ray cluster has no GPU; add GPU nodes, or use --device auto or cpu"
        )
    if wanted == "auto":
        return "cuda" if capacity.gpus > 0 else "cpu"
    return wanted


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
