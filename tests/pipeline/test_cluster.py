"""Sizing the pools."""

from __future__ import annotations

import pytest

from medret.errors import UsageError
from medret.pipeline.cluster import Capacity, device_for, plan_pools
from medret.pipeline.stream import block_volumes

DREAMSIM, DINOV2, DINOV1, SWIN, RESNET = 52.7, 23.2, 17.6, 15.4, 4.1


@pytest.mark.parametrize("costs", [[1.0], [1.0, 1.0], [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET]])
@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 256])
def test_reading_always_finds_a_cpu(cpus: int, costs: list[float]) -> None:
    plan = plan_pools(Capacity(cpus, 0, min(cpus, 16)), costs, "cpu")
    assert sum(plan.sizes) * plan.num_cpus + plan.read_cpus <= cpus + 1e-9
    assert min(plan.sizes) >= 1
    assert plan.threads >= 1


def test_two_nodes_of_one_cpu_leave_half_of_each_to_reading() -> None:
    plan = plan_pools(Capacity(2, 0, 1), [1], "cpu")
    assert (plan.sizes, plan.num_cpus, plan.read_cpus) == ((1,), 0.5, 0.5)


@pytest.mark.parametrize("nodes", [2, 3, 40])
@pytest.mark.parametrize("node_cpus", [1, 2, 16])
@pytest.mark.parametrize("models", [1, 5])
def test_whichever_nodes_are_lost_all_actors_fit_beside_a_read_task(nodes: int, node_cpus: int, models: int) -> None:
    """A4: restarted actors once took every CPU of what was left, and reading starved."""
    plan = plan_pools(Capacity(nodes * node_cpus, 0, node_cpus), [1.0] * models, "cpu")
    assert sum(plan.sizes) * plan.num_cpus + plan.read_cpus <= node_cpus + 1e-9
    assert plan.num_cpus > 0


@pytest.mark.parametrize("node_cpus", [1, 2, 4])
@pytest.mark.parametrize("models", [1, 2, 5])
def test_reading_finds_a_node_wherever_actors_are_placed(node_cpus: int, models: int) -> None:
    plan = plan_pools(Capacity(2 * node_cpus, 0, node_cpus), [1.0] * models, "cpu")
    actors = sum(plan.sizes)
    for there in range(actors + 1):  # of two nodes, on the first
        free = [node_cpus - plan.num_cpus * placed for placed in (there, actors - there)]
        assert min(free) < 0 or max(free) >= plan.read_cpus, f"{there} of {actors} actors leave {free}"


def test_cpu_pools_grow_with_the_cluster() -> None:
    assert plan_pools(Capacity(2, 0, 2), [1], "cpu").sizes == (2,)
    assert plan_pools(Capacity(64, 0, 16), [1], "cpu").sizes == (48,)
    assert plan_pools(Capacity(64, 0, 16), [1], "cpu", actors=3).sizes == (3,)
    assert plan_pools(Capacity(64, 0, 16), [1], "cpu").threads == 1
    assert plan_pools(Capacity(64, 0, 64), [1], "cpu").sizes == (64,)
    assert plan_pools(Capacity(64, 0, 16), [1], "cpu", actors=3).threads == 16  # no more than a node has


@pytest.mark.parametrize(
    ("cpus", "node_cpus", "costs", "sizes"),
    [
        (2, 2, [RESNET, DREAMSIM], (1, 2)),
        (2, 2, [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET], (1, 1, 2, 1, 1)),
        (16, 16, [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET], (3, 4, 9, 3, 1)),
        (64, 16, [DINOV1, DINOV2, DREAMSIM, SWIN, RESNET], (8, 10, 21, 7, 2)),
        (64, 16, [DREAMSIM, RESNET], (44, 4)),
        (8, 8, [0.0, DINOV1], (5, 5)),  # what is not known counts as the dearest
        (8, 8, [0.0, 0.0], (5, 5)),
    ],
)
def test_models_share_cores_by_what_they_cost(
    cpus: int, node_cpus: int, costs: list[float], sizes: tuple[int, ...]
) -> None:
    plan = plan_pools(Capacity(cpus, 0, node_cpus), costs, "cpu")
    assert (plan.sizes, plan.threads) == (sizes, 1)


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
    plan = plan_pools(Capacity(64, gpus, 16), costs, "cuda")
    assert plan.sizes == sizes
    assert plan.num_gpus == pytest.approx(share)
    assert sum(plan.sizes) <= gpus * int(1 / plan.num_gpus + 1e-9)


def test_more_actors_than_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit the cluster's 1 GPUs"):
        plan_pools(Capacity(8, 1, 8), [1, 1], "cuda", actors=2, gpus_per_actor=0.5)


def test_cuda_without_a_gpu_is_never_a_silent_cpu_run() -> None:
    with pytest.raises(UsageError, match="has no GPU"):
        device_for("cuda", Capacity(8, 0, 8))
    assert device_for("auto", Capacity(8, 0, 8)) == "cpu"
    assert device_for("auto", Capacity(8, 2, 8)) == "cuda"
    assert device_for("cpu", Capacity(8, 2, 8)) == "cpu"


@pytest.mark.parametrize(
    ("volumes", "actors", "device", "size"),
    [(1, 1, "cpu", 8), (169, 2, "cpu", 8), (3000, 2, "cpu", 16), (3000, 280, "cpu", 8), (10**6, 8, "cuda", 64)],
)
def test_blocks_grow_with_the_archive_as_long_as_every_actor_gets_many(
    volumes: int, actors: int, device: str, size: int
) -> None:
    assert block_volumes(volumes, actors, device) == size
