"""The public face: its names, what importing it loads, and that it asks for what the commands ask for."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import medret
from medret import errors
from medret.cli import index, main
from medret.embeddings import parse_aggregation
from medret.pipeline.request import IndexKeywords, IndexRequest
from medret.recipe import SliceRecipe


def test_all_is_sorted_and_every_name_exists_and_is_described() -> None:
    assert medret.__all__ == sorted(medret.__all__)
    assert set(medret.__all__) <= set(dir(medret))
    assert all(inspect.getdoc(getattr(medret, name)) for name in medret.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = medret.nothing


def test_every_error_that_reaches_a_caller_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree <= set(medret.__all__)


def test_importing_medret_loads_no_library() -> None:
    heavy = ("faiss", "fsspec", "msgspec", "numpy", "pyarrow", "ray", "rich", "torch")
    script = f"import sys, medret; print(sorted(set({heavy!r}) & set(sys.modules)), medret.__all__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {medret.__all__}"


def requests_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[IndexRequest]:
    made = []

    def run_index(arguments: Any) -> int:
        made.append(index._request(arguments))
        return 0

    monkeypatch.setattr(index, "run_index", run_index)
    assert main(command.split()) == 0
    return made


def test_keywords_make_the_request_that_the_command_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        "models": ["dinov2", "swin"],
        "weights": {"swin": "/w.pth"},
        "slices": "uniform:20",
        "planes": ("axial", "coronal"),
        "aggregations": ["mean", "gaussian:0.5,0.2"],
        "exclude": "*/old/*",
        "pattern": "ct/*",
        "hnsw_m": 16,
        "max_gone": 0.5,
        "max_volume_gib": 2.0,
        "lease_s": 60.0,
    }
    command = (
        "index a s --model dinov2 --model swin --weights swin=/w.pth --slices uniform:20 --plane axial --plane coronal "
        "--aggregation mean --aggregation gaussian:0.5,0.2 --exclude */old/* --glob ct/* --hnsw-m 16 --max-gone 0.5 "
        "--max-volume-gib 2 --lease-seconds 60"
    )
    made = requests_of(command, monkeypatch)
    request = IndexRequest.of("a", "s", options)
    assert made == [request]
    assert request.slices == SliceRecipe(planes=("axial", "coronal"), slices="uniform:20")
    assert request.aggregations == (parse_aggregation("mean"), parse_aggregation("gaussian:0.5,0.2"))
    assert (request.index.hnsw_m, request.gates.max_gone, request.limits.max_voxels_bytes) == (16, 0.5, 2 * 2**30)


def test_a_command_without_options_makes_the_default_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requests_of("index a s", monkeypatch) == [IndexRequest("a", "s")] == [IndexRequest.of("a", "s", {})]


def test_every_keyword_is_an_option() -> None:
    request: dict[str, Any] = dict.fromkeys(IndexKeywords.__annotations__)
    assert {"labels", "models", "slices", "weights"} <= set(request)
    with pytest.raises(medret.UsageError, match="index has no option 'model'; there are labels, "):
        medret.index_archive("a", "s", model="dinov2")  # type: ignore[call-arg]


def test_one_name_may_stand_for_a_list_of_one() -> None:
    assert IndexRequest.of("a", "s", {"models": "dinov2"}) == IndexRequest.of("a", "s", {"models": ["dinov2"]})


def test_what_an_archive_lacks_is_an_error_of_the_tree(tmp_path: Path) -> None:
    with pytest.raises(medret.NotFoundError, match="nowhere"):
        medret.plan_index(tmp_path / "nowhere", tmp_path / "store")
    with pytest.raises(medret.UsageError, match="a place of its own"):
        medret.index_archive(tmp_path, tmp_path)
