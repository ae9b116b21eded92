"""What other tools read: `medret export`, and a reader without medret."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medret.cli.main import main
from medret.errors import StorageError, UsageError
from medret.search import open_snapshot
from medret.search.export import export_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_cache_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRET_CACHE", str(tmp_path / "cache"))


def _by_place(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[float]]:
    return {(row["volume_id"], row["plane"], row["position"]): list(row["vector"]) for row in rows}


def test_the_documented_reader_and_export_give_the_live_rows(history: SimpleNamespace, tmp_path: Path) -> None:
    """C22: files read by a glob also give the rows of a volume that is gone."""
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace("STORE", history.store.root)
    found: dict[str, Any] = {}
    exec(code, found)  # it is the documented code that is tested
    live = _by_place(found["vectors"])
    assert {key[0] for key in live} == {f"v{number}.nii.gz" for number in (0, 1, 3, 4, 5, 6, 7, 8)}
    out = tmp_path / "slices.parquet"
    assert main(["export", history.store.uri, str(out), "--slices"]) == 0
    exported = pq.read_table(out).to_pylist()
    assert _by_place(exported) == live
    assert {row["organ"] for row in exported} == {"Brain"}
    for volume_id, vectors in history.vectors.items():
        own = [row["vector"] for row in exported if row["volume_id"] == volume_id]
        expected = [] if volume_id == "v2.nii.gz" else vectors.astype(np.float32).tolist()
        assert own == expected


def test_volume_vectors_of_one_aggregation(
    history: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C22: one row per live volume, as `--json` says."""
    out = tmp_path / "volumes.parquet"
    assert main(["export", history.store.uri, str(out), "--aggregation", "mean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 8
    table = pq.read_table(out)
    assert sorted(table["volume_id"].to_pylist()) == [f"v{number}.nii.gz" for number in (0, 1, 3, 4, 5, 6, 7, 8)]
    lengths = np.linalg.norm(np.array(table["vector"].to_pylist()), axis=1)
    assert lengths == pytest.approx(1, abs=1e-2)
    assert main(["export", history.store.uri, str(out), "--aggregation", "max"]) == 2
    assert main(["export", history.store.uri, str(tmp_path / "no" / "where.parquet")]) == 1
    assert [path.name for path in tmp_path.glob("*.parquet*")] == ["volumes.parquet"]


def test_a_place_that_takes_no_file_is_one_line(history: SimpleNamespace, tmp_path: Path) -> None:
    snapshot = open_snapshot(history.store.uri)
    with pytest.raises(UsageError, match="is a folder"):
        export_rows(snapshot, Path())
    with pytest.raises(StorageError, match="cannot be written"):
        export_rows(snapshot, tmp_path / ("x" * 300))
