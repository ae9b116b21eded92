"""The nodes of the cluster: what they offer, which of them the run loses, and asking an autoscaler for more.

A request for nodes is a set of waiting tasks that do nothing: an autoscaler adds nodes for them, within its limits, and
tasks that find a place end at once. The request therefore ends when there are enough places, and with the job, however
the job ends. Tasks that may just find a place are not cancelled: a driver that did so was once ended by Ray 2.60.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2, common_pb2

from medret.errors import UnreachableError, UsageError
from medret.pipeline.pools import Capacity, Expected, Wish

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


WAITING_MOST = 256  # tasks per wish: enough for an autoscaler to see what is wanted, and few enough for the driver
ASK_EVERY_S = 1.0
A_CPU, A_GPU = Wish(1.0, 0.0, 1), Wish(0.0, 1.0, 1)


@contextmanager
def asking(wishes: Sequence[Wish]) -> Iterator[None]:
    """Ask for the places of `wishes` that the cluster lacks, until the block ends."""
    if not wishes:
        yield
        return
    requests = [_Request(wish) for wish in wishes]

    def look(nodes: list[Node]) -> None:
        for request in requests:
            request.look(nodes)

    with looking(look):
        yield


class _Request:
    """The waiting tasks of one wish."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._waiting: list[Any] = []

    def look(self, nodes: list[Node]) -> None:
        """Have at least as many tasks waiting as there are too few places on these nodes."""
        if self._waiting:
            _, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=0, fetch_local=False)
        count = min(missing(self._wish, nodes), WAITING_MOST)
        self._waiting += [waiting_task(self._wish) for _ in range(count - len(self._waiting))]


def missing(wish: Wish, nodes: Sequence[Node]) -> int:
    """How many places of a wish the nodes that are alive do not offer."""
    offers = (node["Resources"] for node in nodes if node["Alive"])
    return max(0, wish.count - sum(wish.places(offer.get("CPU", 0), offer.get("GPU", 0)) for offer in offers))


def waiting_task(wish: Wish) -> Any:
    """A task that waits for a place and ends as soon as it has one."""
    return ray.remote(num_cpus=wish.cpus, num_gpus=wish.gpus, max_retries=0)(_nothing).remote()


def _nothing() -> None:
    """What a waiting task does once it has a place."""


def find_device(
    wanted: str, expected: Expected, wait_minutes: float, say: Callable[[str], None]
) -> tuple[str, Capacity]:
    """`cpu` or `cuda`, and what the cluster offers, once it has a node for that device.

    `auto` means `cuda` if there is a GPU, or if one is expected or the autoscaler can add one. Raises UsageError for
    `cuda` where no GPU is and none can come, UnreachableError if no fitting node comes within the time.
    """
    autoscales = autoscaler_answers(_status())
    grows = autoscales or expected != Expected()
    capacity = capacity_of(ray.nodes(), grows=grows)
    wait_s = 60 * wait_minutes

    def gpu_comes() -> bool:
        task = offered(A_GPU, wait_s, sure=expected.gpus > 0, autoscales=autoscales) if wait_s else None
        if task is not None:
            wait_for(task, "a GPU", wait_s, say)
        return task is not None

    device = "cpu"
    if wanted != "cpu" and (capacity.gpus > 0 or gpu_comes()):
        device = "cuda"
    elif wanted == "cuda":
        raise UsageError(
            "--device cuda was asked for, but the Ray cluster has no GPU; add GPU nodes, say --expect gpu=N if they "
            "come once they are needed, or use --device auto or cpu"
        )
    if device == "cpu" and capacity.cpus <= 0:
        wait_for(waiting_task(A_CPU), "a CPU", wait_s, say)
    return device, capacity_of(ray.nodes(), grows=grows)


def wait_for(task: Any, what: str, wait_s: float, say: Callable[[str], None]) -> None:
    """Wait until a waiting task has found its node. Raises UnreachableError if none comes within the time."""
    began = time.monotonic()
    if ray.wait([task], timeout=0)[0]:
        return
    if wait_s:
        say(f"waiting for a node with {what} to join the Ray cluster, for up to {wait_s / 60:g} min (--wait-minutes)")
    if not ray.wait([task], timeout=wait_s)[0]:
        raise UnreachableError(
            f"no node of the Ray cluster has {what} that is free, and none came within {wait_s / 60:g} min; see "
            "`ray status` for what the autoscaler says, wait longer (--wait-minutes), or "
            + ("use --device cpu" if what == "a GPU" else "start worker nodes: the head does no work")
        )
    say(f"a node with {what} is there after {time.monotonic() - began:.0f} s")


def offered(wish: Wish, wait_s: float, *, sure: bool, autoscales: bool) -> Any:
    """Ask the autoscaler for a node: the waiting task, or None if none of the autoscaler's node types fits.

    sure: ask, but do not wait for its answer. autoscales: whether there is one that answers.
    """
    if not (sure or autoscales):
        return None
    began, task, version = time.monotonic(), waiting_task(wish), None
    while not sure and time.monotonic() - began < wait_s and (status := _status()):
        if ray.wait([task], timeout=ASK_EVERY_S)[0]:
            return task
        if _holds(status.autoscaling_state.infeasible_resource_requests, wish):
            ray.cancel(task)
            return None
        if version is not None and status.autoscaling_state.last_seen_cluster_resource_state_version >= version:
            return task  # the autoscaler has seen the request
        pending = [each.request for each in status.cluster_resource_state.pending_resource_requests]
        if version is None and _holds(pending, wish):
            version = status.cluster_resource_state.cluster_resource_state_version
    return task


def _holds(requests: Iterable[Any], wish: Wish) -> bool:
    asked = {name: value for name, value in (("CPU", wish.cpus), ("GPU", wish.gpus)) if value}
    return any(dict(request.resources_bundle) == asked for request in requests)


def _status() -> Any:
    """What Ray and the autoscaler last reported; None for a driver that is not part of the cluster."""
    with suppress(Exception):
        reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
        reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
        return reply
    return None


def autoscaler_answers(status: Any) -> bool:
    """Whether an autoscaler reports what it does, as those do that `ray up` and KubeRay start."""
    return status is not None and status.autoscaling_state.autoscaler_state_version > 0
