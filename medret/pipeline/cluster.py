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

# A read task requests a whole CPU if nodes have at least this many, else a share of one.
WHOLE_CPU_FROM = 2
SMALLEST_PARTS = 10_000  # Ray counts CPUs in ten-thousandths
BUSY_SHARE = 0.9  # of a core's time; a model that needs more gets a further actor
LOOK_EVERY_S = 2.0
PROBE_S = 0.5


@dataclass(frozen=True)
class Capacity:
    """The resources of the cluster at the start. node_cpus: CPUs of the smallest node that has any."""

    cpus: float
    gpus: float
    node_cpus: float


@dataclass(frozen=True)
class PoolPlan:
    """The embedding pool of each model, and the CPUs of a read task.

    sizes: actors per model. num_cpus, num_gpus: Ray resources per actor. threads: torch threads per actor. read_cpus:
    CPUs per read task.
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
    """Size the actor pools so that every pool can start and reading never starves.

    costs: cost of one slice per model, in any unit; 0 if unknown, which counts as the highest. All models embed every
    slice and the slowest pool sets the pace, so actors are shared out in proportion to cost. Actors that take all CPUs
    would deadlock the reads, so at least a quarter of the CPUs (one, on a small machine) stays free.
    Raises UsageError if the requested actors do not fit.
    """
    models, dearest = len(costs), max(costs) or 1.0
    costs = [cost or dearest for cost in costs]
    is_one_machine = capacity.node_cpus >= capacity.cpus
    # Any one of several nodes may be lost; the others must still have room for a read task beside all actors.
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
    # Two processes of one thread embed 1.5 times as many slices as one process of two threads. On one machine each core
    # gets one actor, and reading uses the CPUs that actors do not request. On several nodes, actors request so little
    # that all of them fit beside a read task on the smallest node: wherever Ray places them, and whichever nodes are
    # lost, some node has room for reading. Ray spreads the actors; those of a lost node move to the others.
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
    """Round down to what Ray can count: whole CPUs from one on, below that hundredths, or its smallest part."""
    parts = 1 if cpus >= 1 else 100 if cpus >= 0.01 else SMALLEST_PARTS
    return max(math.floor(parts * cpus), 1) / parts


def _places(gpus: float, share: float) -> int:
    """How many actors fit. An actor with a share of a GPU never spans two GPUs."""
    return int(gpus) * int(1 / share + 1e-9) if share < 1 else int(gpus / share + 1e-9)


def allot(places: int, costs: Sequence[float]) -> tuple[int, ...]:
    """Share out `places` actors, at least one per model. Each next one goes to the model with the busiest actors."""
    sizes = [1] * len(costs)
    while sum(sizes) < places:
        sizes[max(range(len(costs)), key=lambda at: costs[at] / sizes[at])] += 1
    return tuple(sizes)


def _on_one_machine(cores: float, cpus: float) -> int:
    """Actors for a model that needs the time of `cores` cores.

    Actors of several models take turns on a core: one that needs nearly all of its time would rarely get it.
    """
    return max(1, min(int(cpus), math.ceil(cores / BUSY_SHARE)))


def capacity_now() -> Capacity:
    """The resources of the connected cluster."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node.get("CPU", 0.0) for node in nodes]
    return Capacity(sum(cpus), sum(node.get("GPU", 0.0) for node in nodes), min((c for c in cpus if c), default=1.0))


def device_for(wanted: str, capacity: Capacity) -> str:
    """`cpu` or `cuda`. Raises UsageError for cuda on a cluster without a GPU, instead of running on the CPU."""
    if wanted == "cuda" and capacity.gpus <= 0:
        raise UsageError(
            "--device cuda was asked for, but the Ray cluster has no GPU; add GPU nodes, or use --device auto or cpu"
        )
    if wanted == "auto":
        return "cuda" if capacity.gpus > 0 else "cpu"
    return wanted


@contextmanager
def watching_nodes(warn: Callable[[str], None]) -> Iterator[list[str]]:
    """Warn of every node that is lost while the block runs. Yields the growing list of their names."""
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
    """What is known about the nodes. lost: names of nodes that were alive and are not any more.

    Ray takes a quarter of a minute to declare a node dead. A node whose port answered before and now refuses is dead.
    """

    def __init__(self, warn: Callable[[str], None], answers: Callable[[dict[str, Any]], bool | None]) -> None:
        self._warn = warn
        self._answers = answers
        self._seen: dict[str, dict[str, Any]] = {}
        self._answered: set[str] = set()
        self.lost: list[str] = []

    def look(self, nodes: list[dict[str, Any]]) -> None:
        """Compare with the last look. nodes: as `ray.nodes()` returns them."""
        alive = {node["NodeID"]: node for node in nodes if node["Alive"] and not self._refuses(node)}
        lost = [node for name, node in self._seen.items() if name not in alive]
        self._seen = alive
        cpus = sum(node["Resources"].get("CPU", 0) for node in alive.values())
        left = f"{len(alive)} are left, with {cpus:g} CPUs" if cpus else "none that can work is left; waiting for one"
        for node in lost:
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            self.lost.append(name)
            self._warn(f"lost node {name} of the cluster; what it had not finished is done again on others; {left}")

    def _refuses(self, node: dict[str, Any]) -> bool:
        answers = self._answers(node)
        if answers:
            self._answered.add(node["NodeID"])
        return answers is False and node["NodeID"] in self._answered


def answers(node: dict[str, Any]) -> bool | None:
    """True if the port of a node accepts connections, False if it refuses them, None if it does not answer."""
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
        with suppress(Exception):  # a failed look must not end the run
            watch.look(ray.nodes())
        if ended:
            return
        ended = over.wait(LOOK_EVERY_S)
