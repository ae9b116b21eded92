"""Size the pools of embedding actors: how many actors of what size fit the cluster, and how far they may grow."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medret.errors import UsageError

# A read task requests a whole CPU if nodes have at least this many, else a share of one.
WHOLE_CPU_FROM = 2
SMALLEST_PARTS = 10_000  # Ray counts CPUs in ten-thousandths
# Writing is light and must not queue behind reading: only what is written survives a crash. On several nodes it asks
# for next to nothing, for which they always have room. A head without CPUs would take work that asks for nothing.
WRITE_CPUS = 1 / SMALLEST_PARTS
WRITES_ON_NODE = 10
BUSY_SHARE = 0.9  # of a core's time; a model that needs more gets a further actor
CALLS_PER_ACTOR = 16  # an actor with fewer calls would hardly repay the time that its node and its model take to come
READS_PER_GPU = 32  # cores that decode what one GPU embeds; docs/scale.md has the arithmetic
READING_SHARE = 0.25  # of the CPUs, at least
AT_ONCE = 4  # most calls that an actor embeds side by side, in threads that share Python's lock (decision 27)
UNLIMITED = 10**6  # actors: the work and the cluster are the limits


@dataclass(frozen=True)
class Capacity:
    """The resources of the cluster at the start.

    node_cpus: CPUs of the smallest node that has any. cpus_per_gpu: on the node where GPUs share the fewest CPUs; 0
    without a GPU. grows: an autoscaler adds nodes while work waits for them.
    """

    cpus: float
    gpus: float
    node_cpus: float
    cpus_per_gpu: float = 0.0
    grows: bool = False


@dataclass(frozen=True)
class Expected:
    """What the user expects to come to the cluster (`--expect gpu=N`, `cpu=N`); 0: nothing was said."""

    cpus: float = 0.0
    gpus: float = 0.0

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Expected:
        """Read `gpu=N` and `cpu=N`; raises UsageError."""
        found: dict[str, float] = {}
        for text in texts:
            if not (match := re.fullmatch(r"(cpu|gpu)=(\d+)", text)) or int(match[2]) < 1 or match[1] in found:
                raise UsageError(f"--expect is '{text}', expected gpu=N or cpu=N, each once, with N of at least 1")
            found[match[1]] = float(match[2])
        return cls(found.get("cpu", 0.0), found.get("gpu", 0.0))


@dataclass(frozen=True)
class ActorRange:
    """The least and the most embedding actors per model (`--actors`)."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> ActorRange:
        """Read `N` or `MIN:MAX`; raises UsageError."""
        if not (found := re.fullmatch(r"(\d+)(?::(\d+))?", text)):
            raise UsageError(f"--actors is '{text}', expected N or MIN:MAX, such as 4 or 1:16")
        least = int(found[1])
        most = int(found[2] or least)
        if not 1 <= least <= most:
            raise UsageError(f"--actors is '{text}', expected 1 <= MIN <= MAX")
        return cls(least, most)


@dataclass(frozen=True)
class PoolPlan:
    """The embedding pool of each model, and the CPUs of a read task.

    sizes: actors per model at the start. least, most: actors per model between which the pools follow the work and the
    cluster. num_cpus, num_gpus: Ray resources per actor. threads: torch threads per call. read_cpus, write_cpus: CPUs
    per read and write task. at_once: calls that an actor of each model embeds side by side.
    """

    sizes: tuple[int, ...]
    least: tuple[int, ...]
    most: tuple[int, ...]
    num_cpus: float
    num_gpus: float
    threads: int
    read_cpus: float
    write_cpus: float
    at_once: tuple[int, ...]


@dataclass(frozen=True)
class Wish:
    """What the job asks the autoscaler for: `count` places for tasks or actors that request these Ray resources."""

    cpus: float
    gpus: float
    count: int

    def places(self, cpus: float, gpus: float) -> int:
        """How many of them fit a node."""
        fitting = [int(there / asked + 1e-9) for there, asked in ((cpus, self.cpus), (gpus, self.gpus)) if asked]
        return min(fitting, default=0)


def plan_pools(
    capacity: Capacity,
    costs: Sequence[float],
    device: str,
    calls: int,
    *,
    actors: ActorRange | None = None,
    gpus_per_actor: float | None = None,
) -> PoolPlan:
    """Size the actor pools so that every pool can start and reading never starves.

    costs: cost of one slice per model, in any unit; 0 if unknown, which counts as the highest. All models embed every
    slice and the slowest pool sets the pace, so actors are shared out in proportion to cost. calls: calls of a model
    that the work has; more actors would have nothing to do. Raises UsageError if the requested actors do not fit.
    """
    dearest = max(costs) or 1.0
    costs = [cost or dearest for cost in costs]
    if capacity.grows:
        plan = _growing(capacity, costs, device, actors, gpus_per_actor)
    elif device == "cpu" and capacity.node_cpus >= capacity.cpus:
        plan = _one_machine(capacity, costs, calls, actors)
    else:
        plan = _fixed(capacity, costs, device, actors, gpus_per_actor)
    return replace(
        plan,
        sizes=tuple(min(size, calls) for size in plan.sizes),
        least=tuple(min(size, calls) for size in plan.least),
        most=tuple(min(size, calls) for size in plan.most),
    )


def _one_machine(capacity: Capacity, costs: Sequence[float], calls: int, actors: ActorRange | None) -> PoolPlan:
    """Pools for the cores of one machine without GPUs; reading uses the CPUs that actors do not request.

    A core works on one call, with one thread: two calls of one thread embed 1.5 times as many slices as one call of two
    threads. Calls share an actor, because its start costs as much as embedding hundreds of slices.
    """
    models, cpus = len(costs), capacity.cpus
    read_cpus = _reading(capacity)
    if actors:
        most, least = (actors.most,) * models, (actors.least,) * models
        at_once = (max(1, min(AT_ONCE, int(cpus / sum(most)))),) * models
    else:
        cores = [min(calls, _on_one_machine(cpus * cost / sum(costs), cpus)) for cost in costs]
        most = least = tuple(math.ceil(each / AT_ONCE) for each in cores)
        at_once = tuple(math.ceil(each / size) for each, size in zip(cores, most, strict=True))
    budget = cpus - max(read_cpus, READING_SHARE * cpus)
    return PoolPlan(most, least, most, _asked(budget / sum(most)), 0.0, 1, read_cpus, 0.0, at_once)


def _reading(capacity: Capacity) -> float:
    """The CPUs of a read task, of a cluster that stays as it is."""
    if capacity.node_cpus >= WHOLE_CPU_FROM:
        return 1.0
    return capacity.node_cpus / (4 if capacity.node_cpus >= capacity.cpus else 2)


def _fixed(
    capacity: Capacity, costs: Sequence[float], device: str, actors: ActorRange | None, gpus_per_actor: float | None
) -> PoolPlan:
    """Pools for GPUs, or for several nodes that are there.

    Actors that take all CPUs would deadlock the reads, so at least a quarter of the CPUs (one, on a small machine)
    stays free.
    """
    models, single = len(costs), (1,) * len(costs)
    # Any one of several nodes may be lost; the others must still have room for a read task beside all actors.
    read_cpus, write_cpus = _reading(capacity), 0.0
    if capacity.node_cpus < capacity.cpus:
        read_cpus, write_cpus = read_cpus - WRITES_ON_NODE * WRITE_CPUS, WRITE_CPUS
    if device == "cuda":
        share = gpus_per_actor or 1 / math.ceil(models / capacity.gpus)
        places = _places(capacity.gpus, share)
        most = (actors.most,) * models if actors else allot(places, costs)
        if sum(most) > places:
            raise UsageError(
                f"{models} models x {max(most)} actors x {share:g} GPU do not fit the cluster's {capacity.gpus:g} "
                "GPUs; lower --actors or --gpus-per-actor"
            )
        num_cpus = min(1.0, (capacity.cpus - read_cpus) / sum(most))
        if capacity.cpus_per_gpu:  # other nodes cannot take these actors
            num_cpus = min(num_cpus, gpu_shares(capacity, share)[0])
        least = (actors.least,) * models if actors else most
        return PoolPlan(most, least, most, num_cpus, share, max(1, int(num_cpus)), read_cpus, write_cpus, single)
    # Actors request so little that all of them fit beside a read task on the smallest node: wherever Ray places them,
    # and whichever nodes are lost, some node has room for reading. Ray spreads the actors; those of a lost node move to
    # the others, so each is small.
    budget = capacity.cpus - max(read_cpus, READING_SHARE * capacity.cpus)
    most = (actors.most,) * models if actors else allot(int(budget), costs)
    least = (actors.least,) * models if actors else most
    threads = max(1, int(min(capacity.cpus / sum(most), capacity.node_cpus)))
    num_cpus = (capacity.node_cpus - read_cpus) / sum(most)
    return PoolPlan(most, least, most, _asked(num_cpus), 0.0, threads, read_cpus, write_cpus, single)


def _growing(
    capacity: Capacity, costs: Sequence[float], device: str, actors: ActorRange | None, gpus_per_actor: float | None
) -> PoolPlan:
    """Pools for a cluster to which nodes come while the job runs, and from which they go; a lost one is replaced."""
    models = len(costs)
    least, most = (actors.least, actors.most) if actors else (1, UNLIMITED)
    if device == "cuda":
        num_gpus = gpus_per_actor or 1 / math.ceil(models / capacity.gpus)
        places = _places(capacity.gpus, num_gpus)
        num_cpus, read_cpus = gpu_shares(capacity, num_gpus)
    else:
        on_node = max(models, min(int(capacity.node_cpus), models * most))
        places = on_node * max(1, int(capacity.cpus / capacity.node_cpus))
        num_gpus = 0.0
        num_cpus, read_cpus = cpu_shares(capacity.node_cpus, on_node)
    sizes = tuple(max(least, min(size, most)) for size in allot(places, costs))
    threads = max(1, int(num_cpus))
    ranges, single = ((least,) * models, (most,) * models), (1,) * models
    return PoolPlan(sizes, *ranges, num_cpus, num_gpus, threads, read_cpus, WRITE_CPUS, single)


def cpu_shares(node_cpus: float, on_node: int) -> tuple[float, float]:
    """The CPUs that an actor and a read task request so that a node full of actors has room to read and to write.

    on_node: actors that a node of `node_cpus` CPUs takes. Where there is one for each CPU, the actors request so much
    that the rest of the node is too small for one more of them, and reading so little that it fits this rest.
    """
    if on_node < node_cpus:
        return float(max(1, int((node_cpus - 1) / on_node))), 1 - WRITES_ON_NODE * WRITE_CPUS
    parts = int(SMALLEST_PARTS * node_cpus)
    actor = parts // (on_node + 1) + 1
    return actor / SMALLEST_PARTS, (parts - on_node * actor - WRITES_ON_NODE) / SMALLEST_PARTS


def gpu_shares(capacity: Capacity, num_gpus: float) -> tuple[float, float]:
    """The CPUs that an actor with a share of a GPU and a read task request; reading has its part of every GPU node."""
    actor = _asked(min(1.0, num_gpus * capacity.cpus_per_gpu * (1 - READING_SHARE)))
    return actor, min(1.0, capacity.node_cpus / 2) - WRITES_ON_NODE * WRITE_CPUS


def wishes(plan: PoolPlan, costs: Sequence[float], calls: int, expected: Expected) -> tuple[Wish, ...]:
    """What to ask the autoscaler for: actors that have enough calls to be worth their node and, for GPUs, readers.

    expected: the most that can come; more is not asked for.
    """
    dearest = max(costs) or 1.0
    worth = [math.ceil(calls / CALLS_PER_ACTOR * (cost or dearest) / dearest) for cost in costs]
    actors = sum(max(least, min(most, wish)) for least, most, wish in zip(plan.least, plan.most, worth, strict=True))
    if not plan.num_gpus:
        if expected.cpus:
            actors = min(actors, int(expected.cpus / plan.num_cpus))
        return (Wish(plan.num_cpus, 0.0, actors),)
    if expected.gpus:
        actors = min(actors, _places(expected.gpus, plan.num_gpus))
    readers = min(max(worth), READS_PER_GPU * math.ceil(actors * plan.num_gpus))
    if expected.cpus:
        readers = min(readers, int(expected.cpus / plan.read_cpus))
    return (Wish(plan.num_cpus, plan.num_gpus, actors), Wish(plan.read_cpus, 0.0, readers))


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
