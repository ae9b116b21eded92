"""What is told of lost nodes."""

from __future__ import annotations

import socket
from typing import Any

from medret.pipeline.cluster import LET_GO, NodeWatch, answers


def node(name: str, cpus: float, *, alive: bool = True) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerAddress": "10.0.0.1",
        "Alive": alive,
        "Resources": {"CPU": cpus} if alive else {},
    }


def test_a_lost_node_is_told_once_in_one_line() -> None:
    """A4: thousands of lines of Ray's came to the terminal, and none that a person could read."""
    told: list[str] = []
    watch = NodeWatch(told.append, lambda _: None, list)
    gone = node("old", 8, alive=False)  # lost before the run began
    watch.look([gone, node("head", 0), node("one", 2), node("two", 4)])
    watch.look([gone, node("head", 0), node("one", 2), node("two", 4)])
    assert told == []
    for _ in range(2):
        watch.look([gone, node("head", 0), node("one", 2, alive=False), node("two", 4)])
    assert [line.partition(";")[0] for line in told] == ["lost node 10.0.0.1 (one) of the cluster"]
    assert told[0].endswith("2 are left, with 4 CPUs")
    watch.look([gone, node("head", 0), node("one", 2, alive=False), node("two", 4, alive=False)])
    assert "none that can work is left" in told[1]
    assert watch.lost == ["10.0.0.1 (one)", "10.0.0.1 (two)"]


def test_a_node_that_the_autoscaler_let_go_is_not_lost() -> None:
    told: list[str] = []
    idle = node("one", 2, alive=False) | {"DeathReason": LET_GO}
    watch = NodeWatch(told.append, lambda _: None, lambda: [node("head", 0), idle])
    watch.look([node("head", 0), node("one", 2)])
    watch.look([node("head", 0), idle])
    assert told == watch.lost == []


def test_a_node_whose_port_answered_and_refuses_is_lost_before_ray_says_so() -> None:
    """A4: a run may end within the time that Ray waits."""
    told: list[str] = []
    watch = NodeWatch(told.append, answers, list)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        nodes = [node("head", 0) | {"NodeManagerPort": 1}, node("one", 2) | {"NodeManagerPort": port}]
        for each in nodes:
            each["NodeManagerAddress"] = "127.0.0.1"
        watch.look(nodes)
    watch.look(nodes)
    watch.look(nodes)
    assert [line[:27] for line in told] == ["lost node 127.0.0.1 (one) o"]  # nobody ever answered at the head's
