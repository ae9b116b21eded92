"""`medret search` over a synthetic store, as a user types it."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medret.cli import main
from medret.cli.tables import print_hits
from medret.search import Hit


@pytest.fixture
def made(made_store: Any) -> Any:
    return made_store


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["search", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_query_and_many(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = _json(capsys, made.uri, made.ids[0], "-k", "2")
    assert one["query"] == made.ids[0]
    assert [hit["rank"] for hit in one["hits"]] == [1, 2]
    many = _json(capsys, made.uri, *made.ids[:3], "-k", "2")
    assert [result["query"] for result in many["results"]] == made.ids[:3]
    assert many["results"][0] == one


def test_options_reach_the_search(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    query = made.ids[0]
    found = _json(
        capsys, made.uri, query, "--mode", "late", "--index", "exact", "--where", "organ = 'Lung'",
        "--query-weights", "gaussian:0.5,0.2", "--query-slices", "uniform:2", "--symmetric",
    )  # fmt: skip
    assert {hit["labels"]["organ"] for hit in found["hits"]} == {"Lung"}
    fused = _json(
        capsys, made.uri, query, "--aggregation", "mean=0.7", "--aggregation", "max=0.3", "--exclude", "subject"
    )
    assert query not in {hit["volume_id"] for hit in fused["hits"]}
    ranks = _json(capsys, made.uri, query, "--aggregation", "mean", "--aggregation", "max", "--fuse", "rrf")
    assert ranks["hits"][0]["score"] == 1
    part = _json(capsys, made.uri, query, "--slices", "5:35", "-k", "1")
    assert part["hits"][0]["slices"]["query"] == [5, 35]
    assert _json(capsys, made.uri, query, "--per-slice", "3", "--mode", "vote", "--candidates", "5")["hits"]


def test_the_table_shows_the_ranges(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", made.uri, made.ids[0], "--slices", "5:35", "-k", "1"]) == 0
    assert "axial 5-35 ~ " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ([], "the cosine of the two volumes' vectors"),
        (["--mode", "vote"], "the volume's share of the nearest slices"),
        (["--mode", "max"], "the best cosine of a slice of the query"),
        (["--mode", "sum"], "the sum of the cosines"),
        (["--mode", "late"], "the mean, over the query's slices, of the best cosine"),
        (
            ["--aggregation", "mean", "--aggregation", "max", "--fuse", "rrf"],
            "the sum of the members' reciprocal ranks",
        ),
    ],
)
def test_table_and_page_say_what_the_score_is(
    made: Any, options: list[str], score: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C18."""
    page = tmp_path / "page.html"
    assert main(["search", made.uri, made.ids[0], "-k", "1", "--html", str(page), *options]) == 0
    assert f"score: {score}" in capsys.readouterr().out
    assert f"Score: {score}" in " ".join(html.unescape(page.read_text()).split())


def test_a_pipe_gets_whole_names_and_one_row_per_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C18."""
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"site/{'long ' * 40}name_{number}.nii.gz" for number in range(3)]
    print_hits("query", [Hit(rank, name, name, 0.5, {}, None) for rank, name in enumerate(names, 1)], "any")
    _, _, *rows, _ = capsys.readouterr().out.splitlines()
    assert [row.split(maxsplit=2)[2].rstrip() for row in rows] == names


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-k", "0"], "k is 0"),
        (["--where", "site = 'A'"], "no column 'site'"),
        (["--where", "organ ="], "at its end"),
        (["--slices", "58:40"], "ends before it begins"),
        (["--slices", "11:12"], "they lie at 10, 30, 50"),
        (["--box", "1"], "X0:X1"),
        (["--exclude", "site"], "there are none, self, subject"),
        (["--mode", "best"], "there are volume, vote"),
        (["--model", "other"], "which has synthetic-model"),
        (["--fuse", "mean", "--aggregation", "mean", "--aggregation", "max"], "there are concat, rrf"),
        (["--index", "hnsw", "--per-slice", "0"], "per_slice is 0"),
    ],
)
def test_bad_requests_are_one_line_and_exit_code_2(
    made: Any, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", made.uri, made.ids[0], *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_bad_queries_are_one_line_and_exit_code_2(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "wide.npy", np.ones(7))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "empty.parquet").write_bytes(b"PAR1")
    for query, told in (
        ("no/such.nii.gz", "is neither a file nor a volume"),
        (str(tmp_path / "wide.npy"), "expected (32,)"),
        (str(tmp_path / "broken.npy"), "cannot be read as a .npy"),
        (str(tmp_path / "empty.parquet"), "not a volume"),
    ):
        assert main(["search", made.uri, made.ids[0], query]) == 2
        captured = capsys.readouterr()
        assert told in captured.err
        assert len(captured.err.strip().splitlines()) == 1


def test_the_table_shows_no_secret_of_a_query(capsys: pytest.CaptureFixture[str]) -> None:
    print_hits("https://user:hunter2@host/case.nii.gz", [], "any")
    assert "hunter2" not in capsys.readouterr().out


def test_weights_choose_no_model(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """They are where a model's weights lie, also of one that is not asked."""
    own = _json(capsys, made.uri, made.ids[0])
    assert _json(capsys, made.uri, made.ids[0], "--weights", "another=/nowhere") == own


def test_a_query_too_long_for_a_path_is_a_name(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", made.uri, made.ids[0], "x" * 5000]) == 2
    assert "is neither a file nor a volume" in capsys.readouterr().err
