from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, ndcg_score

from medret.evaluate.levels import confound
from medret.evaluate.metrics import METRICS, NAMES, chance, measure

lists = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=6)


def _judged(relevant: list[list[bool]], extra: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The arguments of `measure`. extra: relevant candidates that the lists do not hold."""
    found = np.array(relevant, bool)
    return found, np.maximum(found.sum(axis=1) + extra, 1)


def _of(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    return values[:, NAMES.index(name)]


def _by_hand(relevant: list[bool], total: int) -> dict[str, float]:
    """Written out as the definitions read."""
    values = {"recall@1": float(relevant[0])}
    for k in (1, 3, 5, 10):
        among = sum(relevant[:k])
        values[f"precision@{k}"] = among / k
        if k > 1:
            values[f"recall@{k}"] = among / total
            values[f"hit@{k}"] = float(among > 0)
    precisions = [sum(relevant[: rank + 1]) / (rank + 1) for rank in range(len(relevant)) if relevant[rank]]
    values["mAP"] = sum(precisions) / total
    gain = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant))) if relevant[rank])
    values["ndcg@10"] = gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, total)))
    return values


@given(lists, st.integers(0, 3))
def test_metrics_are_what_their_definitions_say(relevant: list[list[bool]], extra: int) -> None:
    ranked, total = _judged(relevant, extra)
    values = measure(ranked, total)
    assert values.shape == (len(relevant), len(METRICS))
    for row, own in enumerate(relevant):
        for name, expected in _by_hand(own, int(total[row])).items():
            assert _of(values, name)[row] == pytest.approx(expected, abs=1e-12), name


@given(lists)
def test_metrics_are_those_of_scikit_learn(relevant: list[list[bool]]) -> None:
    kept = [own for own in relevant if any(own)]
    if not kept:
        return
    values = measure(*_judged(kept))
    scores = np.arange(12, 0, -1, dtype=float)
    for row, own in enumerate(kept):
        assert _of(values, "mAP")[row] == pytest.approx(average_precision_score(own, scores), abs=1e-9)
        assert _of(values, "ndcg@10")[row] == pytest.approx(ndcg_score([own], [scores], k=10), abs=1e-9)


def test_the_best_order_scores_one_and_an_empty_list_nothing() -> None:
    best = measure(np.array([[True] * 10 + [False] * 5]), np.array([10]))
    assert best == pytest.approx(np.where(np.char.startswith(NAMES, "recall@"), best, 1.0))
    assert _of(best, "recall@10")[0] == 1
    nothing = measure(np.zeros((2, 0), bool), np.array([3, 4]))
    assert not nothing.any()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.data())
def test_chance_is_the_mean_over_all_orders(candidates: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(1, candidates))
    depth = data.draw(st.integers(1, candidates))
    orders = {tuple(order) for order in itertools.permutations([True] * total + [False] * (candidates - total))}
    ranked = np.array(sorted(orders))[:, :depth]
    totals = np.full(len(ranked), total)
    expected = chance(np.array([total]), np.array([candidates]), depth)[0]
    measured, whole = (measure(lists, totals).mean(axis=0) for lists in (ranked, np.array(sorted(orders))))
    for number, metric in enumerate(METRICS):  # only average precision ends where the lists do
        wanted = measured if metric.form == "mAP" else whole
        assert expected[number] == pytest.approx(wanted[number], abs=1e-12), metric.name


def test_chance_of_a_large_archive_is_the_share_of_the_relevant() -> None:
    values = chance(np.array([2_500]), np.array([100_000]), 100_000)
    assert _of(values, "recall@1")[0] == 0.025
    assert _of(values, "mAP")[0] == pytest.approx(0.025, rel=0.01)
    assert _of(values, "hit@10")[0] == pytest.approx(1 - 0.975**10, rel=1e-3)
    assert _of(values, "recall@10")[0] == 1e-4


# --- labels that follow from their source ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3], ids=["one value", "up to three"])
def test_what_a_source_predicts_is_counted_in_volumes(most: int) -> None:
    rng = np.random.default_rng(most)
    rows = [
        {"organ": ";".join(rng.choice(["Heart", "Liver", "Lung", "Spleen"], rng.integers(1, most + 1), replace=False)),
         "dataset": f"D{rng.integers(6)}"}
        for _ in range(60)
    ]  # fmt: skip
    right = 0
    for at, row in enumerate(rows):
        others = [each for number, each in enumerate(rows) if each["dataset"] == row["dataset"] and number != at]
        counts = Counter(value for each in others for value in each["organ"].split(";"))
        right += any(counts[value] == max(counts.values(), default=0) for value in row["organ"].split(";") if counts)
    found = confound(pa.Table.from_pylist(rows), "organ", "dataset")
    assert found is not None
    assert found.predicted == pytest.approx(right / len(rows))


def test_labels_of_several_values_can_follow_from_their_source() -> None:
    of = {"D1": "Liver;Spleen", "D2": "Liver;Spleen", "D3": "Heart;Lung", "D4": "Heart;Lung"}
    rows = [{"organ": organ, "dataset": dataset} for dataset, organ in of.items() for _ in range(10)]
    found = confound(pa.Table.from_pylist(rows), "organ", "dataset")
    assert found is not None
    assert (found.share, found.predicted, found.excess, found.warns) == (0, 1, 1, True)
