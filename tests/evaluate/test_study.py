from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from medret.cli import main
from medret.embeddings import Slices
from medret.errors import UsageError
from medret.evaluate import Options, Selection, archive_queries, evaluate
from medret.evaluate.scoring import chosen_by_half, halves
from medret.evaluate.study import Study, read_slices, study_page
from medret.evaluate.study_index import like_stored, study_index
from medret.evaluate.study_similarity import late_with_position, study_aggregation, study_ensemble, study_position
from medret.search import Snapshot, open_snapshot
from medret.search.matching import late_scores

ORGAN = Options(levels=["organ"])


def _value(study: Study, arm: str, metric: str = "mAP", exclude: str = "subject") -> float:
    rows = study.rows
    key = (arm, metric, exclude, "organ", "all")
    (row,) = (r for r in rows if (r["arm"], r["metric"], r["exclude"], r["level"], r["queries"]) == key)
    return float(row["value"])


def test_stored_slices_are_those_that_were_written(snapshot: Snapshot, labelled_store: Any) -> None:
    slices = read_slices(snapshot, None)
    assert list(slices) == labelled_store.ids
    for volume in labelled_store.volumes:
        own = slices[volume.volume_id]
        assert (own.vectors == volume.vectors.astype(np.float32)).all()
        assert (own.relative_position == volume.relative_position).all()


def test_aggregation_is_scored_as_an_evaluation_scores_it(snapshot: Snapshot) -> None:
    study = study_aggregation(snapshot, ORGAN, seeds=3)
    arms = {row["arm"] for row in study.rows}
    assert {"mean", "max", "random:5", "random:10", "random:20", "uniform:5", "gaussian:0.5,0.2"} <= arms
    assert len([arm for arm in arms if arm.startswith("gaussian")]) == 20
    selection = Selection(models=[snapshot.models[0]], indices=["exact"], modes=["volume"])
    found = evaluate(snapshot, archive_queries(snapshot), Options(levels=["organ"], selection=selection))
    for arm in found.configs:
        for metric in ("recall@1", "mAP"):
            row = found.figure(arm, "subject", "organ", "macro", metric)
            assert row is not None
            # the index holds vectors rounded to float16, so that a near tie may be the other way round
            assert _value(study, arm.aggregation, metric) == pytest.approx(row.value, abs=0.01)
    rows = {row["arm"]: row for row in study.rows if row["metric"] == "mAP" and row["queries"] == "all"}
    assert rows["random:5"]["seeds"] == 3
    assert rows["random:5"]["spread"] > 0
    assert rows["random:10"]["value"] == rows["mean"]["value"]  # there are six slices
    assert rows["random:10"]["spread"] == 0


def test_an_ensemble_of_equals_is_no_better_and_no_worse(snapshot: Snapshot) -> None:
    study = study_ensemble(snapshot, ORGAN)
    one, other = snapshot.models
    alone = _value(study, one)
    assert _value(study, other) == alone
    for weight in (0.25, 0.5, 0.75):
        assert _value(study, f"{one} {weight:g} + {other} {1 - weight:g}") == pytest.approx(alone, abs=0.01)
    assert _value(study, f"{one} rrf {other}") == pytest.approx(alone, abs=0.01)


def test_without_a_cost_position_is_late_interaction(snapshot: Snapshot) -> None:
    study = study_position(snapshot, ORGAN)
    arms = {row["arm"] for row in study.rows}
    assert {"late", "late, relative 0.1", "late, height 0.1"} <= arms
    assert len(arms) == 1 + 2 * 7
    assert any(note.startswith("organ, exclude subject: best on half 1") for note in study.notes)
    selection = Selection(models=[snapshot.models[0]], aggregations=["mean"], indices=["exact"], modes=["late"])
    found = evaluate(snapshot, archive_queries(snapshot), Options(levels=["organ"], selection=selection))
    for metric in ("recall@1", "mAP"):
        row = found.figure(found.configs[0], "subject", "organ", "macro", metric)
        assert row is not None
        assert _value(study, "late", metric) == pytest.approx(row.value, abs=1e-9)


def test_position_costs_what_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    planes, starts = np.array([0, 0, 1, 0, 1, 0, 0, 0, 1], np.int8), np.array([0, 3, 5, 9])
    places = rng.random(9).astype(np.float32)
    scores = late_with_position(vectors, planes, starts, places, 0.3)(np.arange(3))
    for query in range(3):
        for volume in range(3):
            best = []
            for q in range(starts[query], starts[query + 1]):
                same = [v for v in range(starts[volume], starts[volume + 1]) if planes[v] == planes[q]]
                costs = [float(vectors[q] @ vectors[v]) - 0.3 * abs(float(places[q] - places[v])) for v in same]
                best.append(max(costs))
            assert scores[query, volume] == pytest.approx(np.mean(best), abs=1e-6)


def test_halves_of_the_sources_share_no_source() -> None:
    sources = ["A", "B", None, "C", "A", "D", "B"]
    found = halves(sources)
    first, second = (found[name] for name in ("half 1", "half 2"))
    assert found["all"].all()
    assert not (first & second).any()
    assert (first | second).tolist() == [name is not None for name in sources]
    of_source = {name: {bool(first[at]) for at, one in enumerate(sources) if one == name} for name in "ABCD"}
    assert all(len(where) == 1 for where in of_source.values())
    assert sum(where == {True} for where in of_source.values()) == 2
    assert list(halves(["A", "A", None])) == ["all"]


def test_what_is_chosen_on_one_half_is_told_on_the_other() -> None:
    values = {("late", "half 1"): 0.5, ("late", "half 2"): 0.6, ("near", "half 1"): 0.7, ("near", "half 2"): 0.4}
    fixed = {"exclude": "subject", "level": "organ", "metric": "mAP"}
    rows = [{**fixed, "arm": arm, "queries": half, "value": value} for (arm, half), value in values.items()]
    words = (
        "organ, exclude subject: best on half {} of the sources: {} (mAP {}, late {}); on half {} it has {}, late {}"
    )
    assert chosen_by_half(rows, "late") == [
        words.format(1, "near", "0.700", "0.500", 2, "0.400", "0.600"),
        words.format(2, "late", "0.600", "0.600", 1, "0.500", "0.500"),
    ]


def test_an_ensemble_needs_two_models(stores: Any, tmp_path: Path) -> None:
    made = stores.make_store(tmp_path / "store", stores.synthetic_volumes(6))
    with pytest.raises(UsageError, match="has one model, synthetic-model: an ensemble needs two"):
        study_ensemble(open_snapshot(made.uri), ORGAN)


def test_index_settings_are_measured(snapshot: Snapshot) -> None:
    study = study_index(snapshot, sizes=[300, 600], dims=[16, 48])
    rows = study.rows
    assert len(rows) == 2 * 2 * (1 + 12 + 4)
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["build_seconds"] > 0
        if row["index"] == "exact":
            assert row["recall_at_10"] == 1
            assert row["bytes_per_vector"] == pytest.approx(2 * row["dim"], rel=0.05)
        elif row["setting"] in ("fp16, M 32, efSearch 128", "rabitq2, M 32, efSearch 128", "2048 bits"):
            assert row["recall_at_10"] > 0.95
    assert "synthetic" in study.notes[0]


@pytest.mark.parametrize("dim", [8, 32, 64])
def test_synthetic_vectors_have_the_neighbourhoods_of_the_stored(snapshot: Snapshot, dim: int) -> None:
    stored = np.concatenate([own.vectors for own in read_slices(snapshot, None).values()])
    made = like_stored(stored, 400, dim, seed=1).astype(np.float32)
    assert np.linalg.norm(made, axis=1) == pytest.approx(1, abs=2e-3)
    assert (made == like_stored(stored, 400, dim, seed=1)).all()
    spread = [np.sort((x @ x.T)[~np.eye(len(x), dtype=bool)]) for x in (stored, made)]
    own, other = (np.quantile(cosines, [0.1, 0.5, 0.9]) for cosines in spread)
    assert other == pytest.approx(own, abs=0.25)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("aggregation", ["--draws", "2", "--level", "organ"]),
        ("ensemble", ["--exclude", "subject", "--exclude", "dataset"]),
        ("index", ["--sizes", "200", "--dims", "16"]),
    ],
)
def test_the_command_prints_writes_and_draws(
    labelled_store: Any, question: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "study.csv", tmp_path / "study.html"
    arguments = ["study", question, labelled_store.uri, *options]
    assert main([*arguments, "--json", "--csv", str(table), "--html", str(page)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["study"] == question
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == len(document["rows"])
    text = page.read_text()
    assert text.count("<svg") >= 2
    assert "<script" not in text
    assert "://" not in text.replace(labelled_store.uri, "")
    assert main(arguments) == 0
    assert "note: " in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--sizes", "5"], ["--sizes", "2000000"], ["--dims", "3"], ["--seed", "-4"]])
def test_sizes_that_cannot_be_are_one_line(
    labelled_store: Any, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "index", labelled_store.uri, *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_study_of_nothing_is_one_line(labelled_store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "ensemble", labelled_store.uri, "--min-relevant", "500"]) == 2
    captured = capsys.readouterr()
    assert "no query has 500 relevant volumes left by subject" in captured.err
    assert captured.err.count("\n") == 1


def test_texts_of_a_page_are_escaped(snapshot: Snapshot) -> None:
    study = study_index(snapshot, sizes=[50], dims=[8])
    evil = Study("<script>", "<script>", "<script>", study.rows, [("<script>", Markup("<svg></svg>"))], ["<script>"])
    assert "<script" not in study_page(evil)


def test_planes_that_a_volume_lacks_count_as_in_a_search() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((8, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    planes, starts = np.array([0, 0, 1, 0, 0, 1, 1, 2], np.int8), np.array([0, 3, 5, 7, 8])
    found = late_with_position(vectors, planes, starts, np.zeros(8, np.float32), 0.0)(np.arange(4))
    parts = [slice(*pair) for pair in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    sets = [Slices(vectors[part].astype(np.float64), planes[part]) for part in parts]
    expected = [[late_scores(one, other)[0, 0] for other in sets] for one in sets]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


def test_no_more_slices_are_read_than_are_enough(snapshot: Snapshot) -> None:
    every, some = read_slices(snapshot, None), read_slices(snapshot, None, 1)
    assert 0 < len(some) <= len(every)
    assert all((own.vectors == every[name].vectors).all() for name, own in some.items())


@pytest.mark.parametrize(
    ("question", "option"),
    [
        ("ensemble", ["--model", "x"]),
        ("index", ["--level", "organ"]),
        ("position", ["--draws", "2"]),
        ("aggregation", ["--sizes", "100"]),
        ("index", ["--min-relevant", "3"]),
    ],
)
def test_an_option_of_another_question_is_refused(
    labelled_store: Any, question: str, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", question, labelled_store.uri, *option]) == 2
    assert f"{option[0]} is of " in capsys.readouterr().err
