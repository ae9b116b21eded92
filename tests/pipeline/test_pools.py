"""Sizing the pools, for a cluster as it is and for one that grows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from medret.errors import UsageError
from medret.pipeline.pools import (
    AT_ONCE,
    SMALLEST_PARTS,
    WRITES_ON_NODE,
    ActorRange,
    Capacity,
    Expected,
    Wish,
    cpu_shares,
    plan_pools,
    wishes,
)
from medret.pipeline.request import IndexRequest
from medret.pipeline.stream import block_volumes
from medret.recipe import SliceRecipe

MANY = 10**6  # calls of a model
DREAMSIM, DINOV2, DINOV1, SWIN, RESNET = 52.7, 23.2, 17.6, 15.4, 4.1


@pytest.mark.parametrize("costs", [[1.0], [1.0, 1.0], [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET]])
@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 256])
def test_reading_always_finds_a_cpu(cpus: int, costs: list[float]) -> None:
    plan = plan_pools(Capacity(cpus, 0, min(cpus, 16)), costs, "cpu", MANY)
    assert sum(plan.sizes) * plan.num_cpus + plan.read_cpus <= cpus + 1e-9
    assert min(plan.sizes) >= 1
    assert plan.threads >= 1


def test_two_nodes_of_one_cpu_leave_half_of_each_to_reading() -> None:
    plan = plan_pools(Capacity(2, 0, 1), [1], "cpu", MANY)
    assert (plan.sizes, plan.num_cpus, plan.read_cpus) == ((1,), 0.5, 0.499)


@pytest.mark.parametrize("nodes", [2, 3, 40])
@pytest.mark.parametrize("node_cpus", [1, 2, 16])
@pytest.mark.parametrize("models", [1, 5])
def test_whichever_nodes_are_lost_all_actors_fit_beside_a_read_task(nodes: int, node_cpus: int, models: int) -> None:
    """A4: restarted actors once took every CPU of what was left, and reading starved."""
    plan = plan_pools(Capacity(nodes * node_cpus, 0, node_cpus), [1.0] * models, "cpu", MANY)
    assert sum(plan.sizes) * plan.num_cpus + plan.read_cpus <= node_cpus + 1e-9
    assert plan.num_cpus > 0


@pytest.mark.parametrize("node_cpus", [1, 2, 4])
@pytest.mark.parametrize("models", [1, 2, 5])
def test_reading_finds_a_node_wherever_actors_are_placed(node_cpus: int, models: int) -> None:
    plan = plan_pools(Capacity(2 * node_cpus, 0, node_cpus), [1.0] * models, "cpu", MANY)
    actors = sum(plan.sizes)
    for there in range(actors + 1):  # of two nodes, on the first
        free = [node_cpus - plan.num_cpus * placed for placed in (there, actors - there)]
        assert min(free) < 0 or max(free) >= plan.read_cpus, f"{there} of {actors} actors leave {free}"


def test_a_head_without_cpus_is_given_no_writing_but_one_machine_writes_at_once() -> None:
    assert plan_pools(Capacity(16, 0, 16), [1], "cpu", MANY).write_cpus == 0
    assert plan_pools(Capacity(32, 0, 16), [1], "cpu", MANY).write_cpus > 0
    assert plan_pools(Capacity(16, 0, 16, grows=True), [1], "cpu", MANY).write_cpus > 0


def test_cpu_pools_grow_with_the_cluster() -> None:
    two = plan_pools(Capacity(2, 0, 2), [1], "cpu", MANY)
    assert (two.sizes, two.at_once) == ((1,), (2,))
    assert plan_pools(Capacity(64, 0, 16), [1], "cpu", MANY).sizes == (48,)
    assert plan_pools(Capacity(64, 0, 16), [1], "cpu", MANY, actors=ActorRange(3, 3)).sizes == (3,)
    assert plan_pools(Capacity(64, 0, 16), [1], "cpu", MANY).threads == 1
    one_machine = plan_pools(Capacity(64, 0, 64), [1], "cpu", MANY)
    assert (one_machine.sizes, one_machine.at_once, one_machine.threads) == ((16,), (4,), 1)
    assert (
        plan_pools(Capacity(64, 0, 16), [1], "cpu", MANY, actors=ActorRange(3, 3)).threads == 16
    )  # no more than a node has


@pytest.mark.parametrize(
    ("cpus", "node_cpus", "costs", "cores"),
    [
        (2, 2, [RESNET, DREAMSIM], (1, 2)),
        (2, 2, [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET], (1, 1, 2, 1, 1)),
        (16, 16, [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET], (3, 4, 9, 3, 1)),
        (64, 16, [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET], (8, 10, 21, 7, 2)),
        (64, 16, [DREAMSIM, RESNET], (44, 4)),
        (8, 8, [0.0, DINOV1], (6, 6)),  # what is not known counts as the dearest
        (8, 8, [0.0, 0.0], (6, 6)),
    ],
)
def test_models_share_cores_by_what_they_cost(
    cpus: int, node_cpus: int, costs: list[float], cores: tuple[int, ...]
) -> None:
    plan = plan_pools(Capacity(cpus, 0, node_cpus), costs, "cpu", MANY)
    busy = tuple(size * at_once for size, at_once in zip(plan.sizes, plan.at_once, strict=True))
    assert (busy, plan.threads) == (cores, 1)


@pytest.mark.parametrize("models", [1, 2, 5])
@pytest.mark.parametrize("calls", [1, 2, 7, MANY])
@pytest.mark.parametrize("cpus", [1, 2, 3, 5, 16, 96])
def test_on_one_machine_few_actors_use_all_cores(cpus: int, calls: int, models: int) -> None:
    """An actor costs two seconds of a core for imports; more than AT_ONCE threads would wait for Python's lock."""
    plan = plan_pools(Capacity(cpus, 0, cpus), [1.0] * models, "cpu", calls)
    for size, at_once in zip(plan.sizes, plan.at_once, strict=True):
        assert at_once <= AT_ONCE
        assert size * at_once >= min(calls, cpus // models)
        assert (size - 1) * AT_ONCE < min(calls, cpus)


def test_the_actors_of_a_user_work_on_as_many_calls_as_the_machine_has_cores() -> None:
    for actors, at_once in ((1, 4), (2, 4), (4, 2), (8, 1), (20, 1)):
        plan = plan_pools(Capacity(8, 0, 8), [1], "cpu", MANY, actors=ActorRange(actors, actors))
        assert (plan.sizes, plan.at_once, plan.threads) == ((actors,), (at_once,), 1)
    several = plan_pools(Capacity(32, 0, 8), [1], "cpu", MANY)
    assert several.at_once == plan_pools(Capacity(8, 1, 8), [1], "cuda", MANY).at_once == (1,)


@pytest.mark.parametrize(
    ("gpus", "costs", "sizes", "share"),
    [
        (1, [1.0], (1,), 1.0),
        (8, [1.0], (8,), 1.0),
        (1, [1.0] * 5, (1,) * 5, 0.2),
        (2, [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET], (1, 1, 2, 1, 1), 1 / 3),  # of 0.4 of a GPU, only four would fit
        (8, [1.0, 1.0], (4, 4), 1.0),
        (8, [RESNET, DREAMSIM], (1, 7), 1.0),
    ],
)
def test_gpus_are_shared_out(gpus: int, costs: list[float], sizes: tuple[int, ...], share: float) -> None:
    plan = plan_pools(Capacity(64, gpus, 16), costs, "cuda", MANY)
    assert plan.sizes == sizes
    assert plan.num_gpus == pytest.approx(share)
    assert sum(plan.sizes) <= gpus * int(1 / plan.num_gpus + 1e-9)


def test_more_actors_than_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit the cluster's 1 GPUs"):
        plan_pools(Capacity(8, 1, 8), [1, 1], "cuda", MANY, actors=ActorRange(2, 2), gpus_per_actor=0.5)


def test_a_range_of_actors_and_the_number_of_calls_bound_a_pool() -> None:
    plan = plan_pools(Capacity(16, 0, 16), [1], "cpu", MANY, actors=ActorRange.parse("2:5"))
    assert (plan.least, plan.sizes, plan.most) == ((2,), (5,), (5,))
    plan = plan_pools(Capacity(48, 0, 16), [1], "cpu", 3)
    assert (plan.least, plan.sizes, plan.most) == ((3,), (3,), (3,))
    with pytest.raises(UsageError, match="N or MIN:MAX"):
        ActorRange.parse("2-5")
    with pytest.raises(UsageError, match="1 <= MIN <= MAX"):
        ActorRange.parse("5:2")


@pytest.mark.parametrize("node_cpus", [1, 2, 3, 8, 16, 96, 256])
@pytest.mark.parametrize("models", [1, 5])
def test_a_node_full_of_actors_has_room_for_a_read_task_and_for_no_actor_more(node_cpus: int, models: int) -> None:
    on_node = max(node_cpus, models)
    actor, read = (round(SMALLEST_PARTS * cpus) for cpus in cpu_shares(node_cpus, on_node))
    free = SMALLEST_PARTS * node_cpus - on_node * actor
    assert read + WRITES_ON_NODE <= free < actor


def test_the_pools_of_a_growing_cluster_begin_with_what_is_there_and_follow_the_work() -> None:
    one = Capacity(16, 0, 16, grows=True)
    plan = plan_pools(one, [1], "cpu", 200)
    assert (plan.least, plan.sizes, plan.most, plan.threads) == ((1,), (16,), (200,), 1)
    assert plan_pools(Capacity(48, 0, 16, grows=True), [1], "cpu", 200).sizes == (48,)
    assert plan_pools(one, [DREAMSIM, RESNET], "cpu", 200).sizes == (14, 2)
    few = plan_pools(one, [1], "cpu", 200, actors=ActorRange(1, 2))
    assert (few.least, few.sizes, few.most, few.threads) == ((1,), (2,), (2,), 7)  # each takes its share of a node
    gpus = plan_pools(Capacity(24, 1, 8, cpus_per_gpu=8, grows=True), [1, 1], "cuda", 200)
    assert (gpus.sizes, gpus.num_gpus, gpus.num_cpus, gpus.most) == ((1, 1), 0.5, 1.0, (200, 200))


@pytest.mark.parametrize(
    ("calls", "costs", "expected", "asked"),
    [
        (160, [1.0], Expected(), [10]),
        (1, [1.0], Expected(), [1]),
        (160, [DREAMSIM, RESNET], Expected(), [11]),
        (160, [1.0], Expected(cpus=4), [4]),
    ],
)
def test_what_is_asked_for_follows_the_work(
    calls: int, costs: list[float], expected: Expected, asked: list[int]
) -> None:
    plan = plan_pools(Capacity(16, 0, 16, grows=True), costs, "cpu", calls)
    assert [wish.count for wish in wishes(plan, costs, calls, expected)] == asked


def test_gpus_are_asked_for_with_cores_that_decode_for_them() -> None:
    plan = plan_pools(Capacity(8, 1, 8, cpus_per_gpu=8, grows=True), [1], "cuda", 10**4)
    asked = wishes(plan, [1], 10**4, Expected(gpus=2))
    assert asked == (Wish(1.0, 1.0, 2), Wish(0.999, 0.0, 64))


def test_places_of_a_wish() -> None:
    assert Wish(0.5, 0.0, 1).places(16, 0) == 32
    assert Wish(1.0, 0.5, 1).places(16, 1) == 2
    assert Wish(1.0, 0.5, 1).places(16, 0) == 0


@pytest.mark.parametrize(
    ("volumes", "device", "slices", "mib", "size"),
    [
        (1, "cpu", 16, 1, 8), (169, "cpu", 16, 1, 8), (4096, "cpu", 16, 40, 16), (10**6, "cuda", 16, 40, 64),
        (10**5, "cpu", 1, 1, 256), (10**5, "cpu", 1, 8, 32), (10**5, "cpu", 64, 1, 16), (10**4, "cuda", 1, 1, 32),
    ],
)  # fmt: skip
def test_the_size_of_a_block_depends_on_the_work_alone(
    volumes: int, device: str, slices: int, mib: int, size: int
) -> None:
    """Blocks can decide which volumes share a shard; equal runs write equal shards."""
    source = pa.table({"size_bytes": np.full(volumes, mib * 2**20)})
    assert block_volumes(source, device, SliceRecipe(slices=f"uniform:{slices}")) == size


@pytest.mark.parametrize("cpus_per_gpu", [1, 2, 4, 16])
@pytest.mark.parametrize("gpus", [1, 2, 8])
@pytest.mark.parametrize("models", [1, 2, 5])
def test_a_gpus_actors_fit_the_cpus_beside_it_whatever_other_nodes_have(
    models: int, gpus: int, cpus_per_gpu: int
) -> None:
    capacity = Capacity(gpus * cpus_per_gpu + 64, gpus, 8, cpus_per_gpu=cpus_per_gpu)
    plan = plan_pools(capacity, [1.0] * models, "cuda", MANY)
    assert int(1 / plan.num_gpus + 1e-9) * plan.num_cpus <= cpus_per_gpu + 1e-9


def test_an_actor_takes_a_share_of_one_gpu() -> None:
    assert IndexRequest("a", "s", gpus_per_actor=1.0).gpus_per_actor == 1
    with pytest.raises(UsageError, match=r"--gpus-per-actor is 1\.5, expected a share of one GPU"):
        IndexRequest("a", "s", gpus_per_actor=1.5)


@pytest.mark.parametrize("options", [{"device": "gpu"}, {"precision": "fp16"}, {"crop": "body"}])
def test_a_word_that_python_gives_is_one_of_those_that_the_command_takes(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"--\w+ is '\w+', expected one of "):
        IndexRequest.of("a", "s", options)
