"""cluster.yaml is what Ray's cluster launcher accepts, and stays safe."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    import ray.autoscaler

    content: dict[str, Any] = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    return content


def test_matches_the_schema_in_the_ray_wheel(config: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(config, schema)
    outdated = {**config, "initial_workers": 2}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(outdated, schema)


def test_ray_s_own_validation_accepts_it(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == config["available_node_types"].keys()
    assert prepared["head_node_type"] == "head"


def test_head_takes_no_work_and_gpu_nodes_exist(config: dict[str, Any]) -> None:
    nodes = config["available_node_types"]
    assert nodes[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: node for name, node in nodes.items() if name != config["head_node_type"]}
    assert any(node["resources"].get("GPU") for node in workers.values())
    assert any(not node["resources"].get("GPU") and node["resources"]["CPU"] > 0 for node in workers.values())
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())


def test_nodes_that_only_decode_may_be_reclaimed(config: dict[str, Any]) -> None:
    """tests/chaos/elastic.py kills such nodes."""
    decode = config["available_node_types"]["decode"]["node_config"]
    assert decode["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_token_authentication_is_on_everywhere(config: dict[str, Any]) -> None:
    starts = [
        command
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[name]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert any(path.endswith("/.ray/auth_token") for path in config["file_mounts"])
    assert "disabled" not in (ROOT / "cluster.yaml").read_text()
    assert "--dashboard-host=127.0.0.1" in starts[0], "the dashboard is reached through a tunnel only"


def test_mounts_are_files_of_the_checkout(config: dict[str, Any]) -> None:
    local = [path for path in config["file_mounts"].values() if not path.startswith("~")]
    assert local
    assert all((ROOT / path).exists() for path in local)
