"""Sizing the pools."""

from __future__ import annotations

import pytest

from medret.errors import UsageError
from medret.pipeline.cluster import Capacity, device_for, plan_pools
from medret.pipeline.stream import block_volumes


@pytest.mark.parametrize("models", [1, 2, 5])
@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 256])
def test_reading_always_finds_a_cpu(cpus: int, models: int) -> None:
    plan = plan_pools(Capacity(cpus, 0, min(cpus, 16)), models, "cpu")
    held = plan.size * plan.num_cpus * models
    assert held + plan.read_cpus <= cpus + 1e-9
    assert plan.size >= 1
    assert plan.threads >= 1


def test_reading_fits_beside_actors_on_small_nodes() -> None:
    plan = plan_pools(Capacity(2, 0, 1), 1, "cpu")  # two nodes of one CPU
    assert (plan.size, plan.num_cpus, plan.read_cpus) == (1, 1.0, 1.0)


def test_cpu_pools_grow_with_the_cluster() -> None:
    assert plan_pools(Capacity(2, 0, 2), 1, "cpu").size == 2
    assert plan_pools(Capacity(64, 0, 16), 1, "cpu").size == 48
    assert plan_pools(Capacity(64, 0, 16), 1, "cpu", actors=3).size == 3
    assert plan_pools(Capacity(64, 0, 16), 1, "cpu").threads == 1
    assert plan_pools(Capacity(64, 0, 64), 1, "cpu").size == 64
    assert plan_pools(Capacity(64, 0, 16), 1, "cpu", actors=3).threads == 16  # no more than a node has


@pytest.mark.parametrize(
    ("gpus", "models", "size", "share"), [(1, 1, 1, 1.0), (8, 1, 8, 1.0), (1, 5, 1, 0.2), (8, 2, 4, 1.0)]
)
def test_gpus_are_shared_out(gpus: int, models: int, size: int, share: float) -> None:
    plan = plan_pools(Capacity(64, gpus, 16), models, "cuda")
    assert plan.size == size
    assert plan.num_gpus == pytest.approx(share)
    assert plan.size * plan.num_gpus * models <= gpus


def test_more_actors_than_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit the cluster's 1 GPUs"):
        plan_pools(Capacity(8, 1, 8), 2, "cuda", actors=2, gpus_per_actor=0.5)


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
