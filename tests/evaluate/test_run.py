from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, ndcg_score

from medret.errors import UsageError
from medret.evaluate import Options, Selection, archive_queries, evaluate
from medret.evaluate.configs import MODES
from medret.evaluate.figures import notes_of
from medret.index.rows import RowTable
from medret.search import Snapshot
from medret.snapshot import read_files
from medret.storage import Location

Row = dict[str, Any]
ONE = Selection(["synthetic-model"], ["mean"], ["exact", "hnsw"], ["volume"])


def stored_vectors(snapshot: Snapshot, model: str, aggregation: str | None) -> dict[str, NDArray[np.float64]]:
    """volume_id -> its vectors, read from the exact index files and their row tables alone."""
    digest = next(e.recipe["digest"] for e in snapshot.manifest.recipes if e.recipe["model"]["name"] == model)
    files = read_files(Location(snapshot.uri), snapshot.id, snapshot.manifest).to_pylist()
    own = [file for file in files if (file["recipe"], file["aggregation"]) == (digest, aggregation)]
    root = Path(snapshot.uri.removeprefix("file://"))
    vectors: dict[str, list[NDArray[np.float64]]] = {}
    for file in own:
        if file["kind"] == "exact":
            rows = next(f for f in own if f["kind"] == "rows" and f["shard"] == file["shard"])
            index = faiss.read_index(str(root / file["path"]))
            matrix = index.reconstruct_n(0, index.ntotal).astype(np.float64)
            ids = RowTable.open(root / rows["path"]).volume_ids(np.arange(index.ntotal))
            assert list(ids) == sorted(ids)
            for volume_id, vector in zip(ids, matrix, strict=True):
                vectors.setdefault(volume_id, []).append(vector)
    return {volume_id: np.array(found) for volume_id, found in vectors.items()}


Cosines = dict[str, NDArray[np.float64]]  # volume_id -> (slices of the query, slices of the volume)


def late(cosines: Cosines) -> dict[str, tuple[float, ...]]:
    """An index has the slices of one plane, then as many of the other; only those of one plane are compared."""

    def score(table: NDArray[np.float64]) -> float:
        rows, columns = (np.array_split(np.arange(count), PLANES) for count in table.shape)
        parts = [table[np.ix_(own, other)].max(axis=1) for own, other in zip(rows, columns, strict=True)]
        return float(np.float32(np.concatenate(parts).mean()))

    return {name: (score(table),) for name, table in cosines.items()}


def pooled(mode: str) -> Callable[[Cosines], dict[str, tuple[float, ...]]]:
    """Each slice of the query finds its 20 nearest slices."""

    def scores(cosines: Cosines) -> dict[str, tuple[float, ...]]:
        hits: dict[str, list[float]] = {}
        slices = len(next(iter(cosines.values())))
        for own in range(slices):
            found = [(-cosine, name, at) for name, t in cosines.items() for at, cosine in enumerate(t[own])]
            for negative, name, _ in sorted(found)[:20]:
                hits.setdefault(name, []).append(-negative)
        pools: dict[str, Callable[[list[float]], float]] = {
            "vote": lambda own: len(own) / slices / 20,
            "max": max,
            "sum": lambda own: sum(own) / slices / 20,
        }
        summed = {name: round(pools["sum"](own), 6) for name, own in hits.items()}
        return {name: (round(pools[mode](own), 6), summed[name]) for name, own in hits.items()}

    return scores


PLANES = 2
SCORES: dict[str, Callable[[Cosines], dict[str, tuple[float, ...]]]] = {
    "volume": lambda cosines: {name: (float(table[0, 0]),) for name, table in cosines.items()},
    "late": late,
    **{mode: pooled(mode) for mode in ("vote", "max", "sum")},
}


def brute_force(
    snapshot: Snapshot, labels: list[Row], exclude: str, level: str, mode: str = "volume", least: int = 3
) -> dict[tuple[str, str], float]:
    """(class, metric) -> value of the exact arm of the first model and aggregation, in plain Python."""
    aggregation = snapshot.aggregations[0] if mode == "volume" else None
    vectors = stored_vectors(snapshot, snapshot.models[0], aggregation)
    by_class: dict[str, list[dict[str, float]]] = {}
    everyone = []
    for query in labels:
        own = set(filter(None, (query[level] or "").split(";")))
        compared: dict[str, tuple[NDArray[np.float64], bool | None]] = {}
        for other in labels:
            same = query.get(exclude) is not None and other.get(exclude) == query.get(exclude)
            values = set(filter(None, (other[level] or "").split(";")))
            if other["volume_id"] == query["volume_id"] or same:
                continue
            cosines = vectors[query["volume_id"]] @ vectors[other["volume_id"]].T
            compared[other["volume_id"]] = cosines, bool(own & values) if values else None
        scores_of = SCORES[mode]({name: cosines for name, (cosines, _) in compared.items()})
        order = sorted(scores_of, key=lambda name: (*(-score for score in scores_of[name]), name))
        relevant = [found for name in order if (found := compared[name][1]) is not None]  # not judged: no label
        total = sum(bool(found) for _, found in compared.values())
        if not own or total < least:
            continue
        values_of = {"recall@1": float(relevant[0]), "hit@5": float(any(relevant[:5]))}
        values_of |= {f"precision@{k}": sum(relevant[:k]) / k for k in (1, 3, 5, 10)}
        values_of |= {f"recall@{k}": sum(relevant[:k]) / total for k in (3, 5, 10)}
        scores = np.arange(len(relevant), 0, -1, dtype=float)
        share = sum(relevant) / total  # scikit-learn knows only what is ranked
        values_of["mAP"] = average_precision_score(relevant, scores) * share if share else 0.0
        ideal = [[*relevant, *[False] * 10, *[True] * (total - sum(relevant))]]
        values_of["ndcg@10"] = ndcg_score(ideal, [np.arange(len(ideal[0]), 0, -1, dtype=float)], k=10)
        everyone.append(values_of)
        for name in own:
            by_class.setdefault(name, []).append(values_of)
    figures: dict[tuple[str, str], float] = {}
    for metric in everyone[0]:
        means = {name: float(np.mean([one[metric] for one in found])) for name, found in by_class.items()}
        figures |= {(name, metric): mean for name, mean in means.items()}
        figures["macro", metric] = float(np.mean(list(means.values())))
        figures["micro", metric] = float(np.mean([one[metric] for one in everyone]))
    return figures


def assert_equal_to_brute_force(
    snapshot: Snapshot, exclude: str, level: str, mode: str = "volume", least: int = 3
) -> dict[tuple[str, str], float]:
    selection = Selection([snapshot.models[0]], [snapshot.aggregations[0]], ["exact"], [mode])
    options = Options(levels=[level], excludes=[exclude], selection=selection, min_relevant=least)
    found = evaluate(snapshot, archive_queries(snapshot), options)
    expected = brute_force(snapshot, snapshot.labels().to_pylist(), exclude, level, mode, least)
    got = {(row.class_, row.metric): row.value for row in found.rows if row.exclude == exclude}
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=1e-6), key
    assert {name for name, _ in got} == {name for name, _ in expected}
    return expected


@pytest.mark.parametrize("exclude", ["subject", "dataset", "self"])
@pytest.mark.parametrize("level", ["modality", "body_region", "organ"])
def test_figures_are_those_of_brute_force_and_scikit_learn(snapshot: Snapshot, exclude: str, level: str) -> None:
    assert len(assert_equal_to_brute_force(snapshot, exclude, level)) >= 4 * 11


@pytest.mark.parametrize("mode", ["vote", "max", "sum", "late"])
def test_modes_by_slices_are_those_of_brute_force(snapshot: Snapshot, mode: str) -> None:
    assert_equal_to_brute_force(snapshot, "subject", "organ", mode)


def test_models_are_fused_by_the_mean_of_their_scores(snapshot: Snapshot) -> None:
    selection = Selection(aggregations=["mean"], indices=["exact"], modes=["volume", "late", "vote"])
    found = evaluate(snapshot, archive_queries(snapshot), Options(levels=["organ"], selection=selection))
    one, other = snapshot.models  # which have the same vectors in this store
    fused = [config for config in found.configs if len(config.models) > 1]
    assert [(config.models, config.mode) for config in fused] == [((one, other), "volume"), ((one, other), "late")]
    assert not any(config.default for config in fused)
    for config in fused:
        alone = replace(config, model=one)
        for metric in ("recall@1", "mAP", "ndcg@10"):
            values = [found.figure(each, "subject", "organ", "macro", metric) for each in (config, alone)]
            assert values[0] is not None
            assert values[1] is not None
            assert values[0].value == pytest.approx(values[1].value, abs=1e-9)
    notes = [note for note in notes_of(found) if "best on half 1 of the sources" in note]
    assert any(note.startswith("organ, exclude subject: ") for note in notes)
    assert {row["queries"] for row in found.to_json()["by_half"]} == {"half 1", "half 2"}


def test_every_arm_stands_in_one_table(snapshot: Snapshot) -> None:
    found = evaluate(snapshot, archive_queries(snapshot), Options(min_relevant=1))
    arms = {(row.config.index, row.config.aggregation, row.config.mode) for row in found.rows}
    assert arms == {(i, a, m) for i in ("hnsw", "lsh", "exact") for a in ("mean", "max") for m in MODES}
    assert len({row.config for row in found.rows if row.config.default}) == 1
    assert {row.exclude for row in found.rows} >= {"subject"}
    assert found.leading.default
    for row in found.rows:
        assert 0 <= row.low <= row.value + 1e-12 <= row.high + 2e-12
        assert row.high <= 1 + 1e-12
        assert 0 < row.chance <= 1
    for arm in found.configs:
        recall = found.figure(arm, "subject", "all", "all", "ann_recall@10")
        assert (recall is None) == (arm.index == "exact")
        if recall:
            assert recall.value > 0.9
            assert recall.n == 48
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    keys = ["model", "aggregation", "index", "mode", "exclude", "level", "class", "metric", "value", "low", "high"]
    assert list(document["rows"][0])[: len(keys)] == keys
    assert document["classes"]["organ"]["Kidney"] >= 3
    assert found.to_csv().count("\n") == len(found.rows) + 1


def test_queries_that_cannot_be_scored_are_left_out_and_counted(snapshot: Snapshot) -> None:
    found = evaluate(snapshot, archive_queries(snapshot), Options(min_relevant=6, levels=["organ"], selection=ONE))
    left = next(one for one in found.left_out if one.exclude == "subject")
    assert left.unlabelled == 1
    assert left.too_few_relevant >= 4
    assert set(left.by_class) == {"Kidney"}
    assert left.counted + left.too_few_relevant + left.unlabelled == 48
    rows = [row for row in found.rows if (row.metric, row.class_, row.exclude) == ("mAP", "micro", "subject")]
    assert {row.n for row in rows} == {left.counted}


def test_a_level_that_follows_from_the_source_is_warned_about(
    stores: Any, tmp_path: Path, store_of: Callable[[dict[str, Any]], Snapshot]
) -> None:
    by_organ = {"Liver": "A", "Lung": "B", "Brain": "C"}
    confounded = store_of({"metadata": lambda number, organ: [("dataset", by_organ[organ])]})
    found = evaluate(confounded, archive_queries(confounded), Options(selection=Selection(indices=["exact"])))
    assert any("organ follows from dataset" in text for text in found.warnings)
    assert any("no query has 3 relevant volumes left" in text for text in found.warnings)  # not one of another dataset
    assert {row.exclude for row in found.rows if row.level == "organ"} == {"subject"}
    mixed = store_of({"metadata": lambda number, organ: [("dataset", "ABCDE"[number % 5])]})
    found = evaluate(mixed, archive_queries(mixed), Options(selection=Selection(indices=["exact"])))
    assert not found.warnings
    assert list(found.excludes) == ["subject"]


@pytest.fixture
def store_of(stores: Any, tmp_path: Path) -> Callable[[dict[str, Any]], Snapshot]:
    """A store of 30 volumes whose ledger has these columns, made of the volume's number and organ."""
    from medret.search import open_snapshot

    def make(columns: dict[str, Any]) -> Snapshot:
        rows = []
        for number, volume in enumerate(volumes := stores.synthetic_volumes(30)):
            organ = volume.volume_id.split("/")[1].split("_")[0].capitalize()
            values = {"subject": f"s{number // 2}", "organ": organ, "content_sha256": f"{number:064x}"}
            values |= {name: make_value(number, organ) for name, make_value in columns.items()}
            rows.append(stores.ledger_row(volume.volume_id, **values))
        folder = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        return open_snapshot(stores.make_store(folder, volumes, ledger=rows).uri)

    return make


def test_without_subjects_each_volume_is_one(store_of: Callable[[dict[str, Any]], Snapshot]) -> None:
    without = store_of({"subject": lambda number, organ: None})
    found = evaluate(without, archive_queries(without), Options(selection=Selection(indices=["exact"])))
    assert list(found.excludes) == ["self"]
    assert any("no volume has a subject" in text for text in found.warnings)
    assert next(row for row in found.rows if row.class_ == "micro").subjects == 30


def test_without_labels_there_is_one_clear_line(store_of: Callable[[dict[str, Any]], Snapshot]) -> None:
    without = store_of({"organ": lambda number, organ: None})
    with pytest.raises(UsageError, match="nothing can be scored, because no volume has a label"):
        evaluate(without, archive_queries(without), Options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(levels=["flavour"]), "level 'flavour' is not a label"),
        (Options(excludes=["flavour"]), "'flavour' is no label of the store, which has subject, "),
        (Options(sources=["flavour"]), "'flavour' is no label"),
        (Options(min_relevant=1000), "no query has 1000 relevant volumes left"),
        (Options(selection=Selection(models=["other"])), "model 'other' is not in snapshot .* which has synthetic"),
        (Options(selection=Selection(modes=["guess"])), "mode 'guess' is not in snapshot"),
        (Options(selection=Selection(aggregations=["uniform:3"])), "aggregation 'uniform:3' is not in snapshot"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(snapshot: Snapshot, options: Options, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        evaluate(snapshot, archive_queries(snapshot), options)
    assert "\n" not in str(caught.value)


def test_batches_do_not_change_figures(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(selection=Selection(["synthetic-model"], ["mean"]), levels=["organ"])
    whole = evaluate(snapshot, archive_queries(snapshot), options)
    monkeypatch.setattr("medret.evaluate.evaluation.BATCH_PAIRS", 48 * 5)
    parts = evaluate(snapshot, archive_queries(snapshot), options)
    assert [row.value for row in whole.rows] == [row.value for row in parts.rows]
    assert (whole.details["subject"].hits == parts.details["subject"].hits).all()


def test_a_sample_of_the_queries_is_scored_against_all(snapshot: Snapshot) -> None:
    found = evaluate(snapshot, archive_queries(snapshot, sample=20, seed=1), Options(min_relevant=1, selection=ONE))
    assert found.query_set.queries.num_rows == 20
    assert found.query_set.candidates.num_rows == 48
    assert all(row.n <= 20 for row in found.rows)


def test_lists_that_end_early_count_what_they_lack_as_not_found(snapshot: Snapshot) -> None:
    selection = Selection(indices=["exact"], aggregations=["mean"], modes=["volume"])
    whole, short = (
        evaluate(snapshot, archive_queries(snapshot), Options(depth=depth, levels=["body_region"], selection=selection))
        for depth in (None, 10)
    )
    for full, cut in zip(whole.rows, short.rows, strict=True):
        if full.metric == "mAP":
            assert cut.value < full.value
            assert cut.chance < full.chance
        else:
            assert (cut.value, cut.chance) == (full.value, full.chance)
    assert short.to_json()["depths"] == {"exact": 10}


def test_a_level_of_several_values_is_relevant_where_they_share_one(snapshot: Snapshot) -> None:
    labels = snapshot.labels()
    assert "Liver;Lung" in labels["organ"].to_pylist()
    found = evaluate(snapshot, archive_queries(snapshot), Options(levels=["organ"], min_relevant=1, selection=ONE))
    classes = {row.class_ for row in found.rows if row.level == "organ"}
    assert {"Liver", "Lung"} <= classes
    assert "Liver;Lung" not in classes
    liver = pa.compute.match_substring(labels["organ"], "Liver").to_pylist()
    row = found.figure(found.leading, "subject", "organ", "Liver", "mAP")
    assert row is not None
    assert row.n == sum(filter(None, liver))
    assert math.isfinite(row.value)
