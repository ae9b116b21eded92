"""How many actors of what size fit the cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from medret.errors import UsageError

# A read task asks for a whole CPU where the cluster has at least this many, else for a share of one.
WHOLE_CPU_FROM = 2
SMALLEST_PARTS = 10_000  # into which Ray divides a CPU
BUSY_SHARE = 0.9  # of a core's time: an actor that needs more gets company


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
