"""The Ray side of a run: connecting, and how many actors of what size fit the cluster."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from medret.errors import MedretError, UsageError

# A read task asks for a whole CPU where the cluster has at least this many, else for a share of one.
WHOLE_CPU_FROM = 2
BUSY_SHARE = 0.9  # of a core's time: an actor that needs more gets company
IDLE_WORKER_S = 600  # that a process of a local Ray is kept for the next task


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
    read_cpus = 1.0 if capacity.cpus >= WHOLE_CPU_FROM else capacity.cpus / 4
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
    # one, and reading takes what it needs from what they do not ask for. On several, actors ask for whole CPUs, so that
    # what is left is whole CPUs too, wherever they are placed; or, where there are not enough, for so little that a
    # read task finds room on any machine.
    budget = capacity.cpus - max(read_cpus, 0.25 * capacity.cpus)
    is_one_machine = capacity.node_cpus >= capacity.cpus
    if actors:
        sizes = (actors,) * models
    elif is_one_machine:
        sizes = tuple(_on_one_machine(capacity.cpus * cost / sum(costs), capacity.cpus) for cost in costs)
    else:
        sizes = allot(int(budget), costs)
    threads = max(1, int(min(capacity.cpus / sum(sizes), capacity.node_cpus)))
    num_cpus = min(budget / sum(sizes), capacity.node_cpus)
    if num_cpus < 1 and not is_one_machine:
        num_cpus = max(0.0, capacity.node_cpus - read_cpus) / sum(sizes)
    parts = 1 if num_cpus >= 1 else 100
    return PoolPlan(sizes, math.floor(parts * num_cpus) / parts, 0.0, threads, read_cpus)


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
def connected() -> Iterator[None]:
    """Use the Ray that is already connected, the cluster of RAY_ADDRESS (a submitted job), or one made for this run."""
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    try:
        _connect()
        yield
    finally:
        ray.shutdown()


def _connect() -> None:
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            return
        # Ray Data's actors log a known harmless line as an error (ray-project/ray#53727) to every user's terminal, and
        # Ray says there that it was told not to.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Ray ends workers that idle for a second where they are more than the CPUs, actors among them: on a small
        # machine nearly every reading and writing task then waits for a new process and its imports.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(1000 * IDLE_WORKER_S))
        with _stderr_held_back():
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except MedretError:  # told to stop meanwhile
        raise
    except Exception as error:  # Ray raises bare Exceptions here
        where = f"the Ray cluster at {address} could not be reached" if address else "Ray could not be started"
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        raise MedretError(f"{where}: {reason}; nothing was changed, run again when the machine is less busy") from error


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Hold back what native code writes to standard error; show it if the block fails."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            except BaseException:
                held.seek(0)
                os.write(terminal, held.read())
                raise
            finally:
                os.dup2(terminal, 2)
    finally:
        os.close(terminal)
