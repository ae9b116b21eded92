from __future__ import annotations

import numpy as np
import pytest

from medret.evaluate.metrics import Bootstrap, average


def test_macro_is_the_mean_of_classes_and_micro_of_queries() -> None:
    values = np.array([[1.0], [0.0], [0.0], [1.0]])
    members = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
    found = average(values, values / 10, members, np.array([0, 0, 1, 2]), Bootstrap())
    assert found.value[:4, 0] == pytest.approx([(1 / 3 + 1) / 2, 0.5, 1 / 3, 1.0])
    assert np.isnan(found.value[4, 0])
    assert found.chance[0, 0] == pytest.approx(found.value[0, 0] / 10)
    assert found.queries.tolist() == [4, 4, 3, 1, 0]
    assert found.subjects.tolist() == [3, 3, 2, 1, 0]


def test_a_query_of_two_classes_counts_in_both_and_once_in_micro() -> None:
    values = np.array([[1.0], [0.0]])
    members = np.array([[1, 1], [0, 1]], bool)
    found = average(values, values, members, np.array([0, 1]), Bootstrap())
    assert found.value[:, 0] == pytest.approx([0.75, 0.5, 1.0, 0.5])


def test_intervals_hold_the_value_and_are_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((200, 3)) < 0.7).astype(float)
    members = np.eye(4, dtype=bool)[rng.integers(4, size=200)]
    subjects = rng.integers(60, size=200)
    one, same, other = (average(values, values, members, subjects, Bootstrap(500, seed)) for seed in (0, 0, 1))
    assert (one.low <= one.value).all()
    assert (one.value <= one.high).all()
    assert (one.low < one.high).all()
    assert (one.low == same.low).all()
    assert (one.low != other.low).any()


def test_intervals_are_those_of_drawing_subjects_one_by_one() -> None:
    """20 subjects with 5 equal scans each: the width is that of 20 draws, not of 100."""
    rng = np.random.default_rng(2)
    by_subject = (rng.random(20) < 0.5).astype(float)
    subjects = np.repeat(np.arange(20), 5)
    values = by_subject[subjects][:, None]
    found = average(values, values, np.ones((100, 1), bool), subjects, Bootstrap(4000))
    drawn = by_subject[rng.integers(20, size=(4000, 20))].mean(axis=1)
    assert found.low[1, 0] == pytest.approx(np.percentile(drawn, 2.5), abs=0.051)
    assert found.high[1, 0] == pytest.approx(np.percentile(drawn, 97.5), abs=0.051)


def test_a_class_of_one_subject_has_no_interval() -> None:
    """C7: nor has the macro mean, which includes that class, of which no other subject was drawn."""
    values = np.array([[1.0], [0.0], [1.0]])
    members = np.array([[1, 0], [1, 0], [0, 1]], bool)
    found = average(values, values, members, np.array([0, 1, 2]), Bootstrap())
    assert np.isnan([found.low[3, 0], found.high[3, 0], found.low[0, 0], found.high[0, 0]]).all()
    assert found.subjects.tolist() == [3, 3, 2, 1]
    assert (found.low[1, 0], found.high[1, 0]) == (0.0, 1.0)
    assert (found.low[2, 0], found.high[2, 0]) == (0.0, 1.0)


@pytest.mark.parametrize("several", [False, True])
def test_intervals_cover_what_they_should(several: bool) -> None:
    """C7: with labels such as `Liver;Spleen` a 95 % interval covered the truth in 52 of 100 studies."""
    rng = np.random.default_rng(7)
    studies, subjects, classes, truth = 150, 40, 4, 0.6
    covered = np.zeros(2 + classes)
    for _ in range(studies):
        scans = rng.integers(1, 4, subjects)
        owners = np.repeat(np.arange(subjects), scans)
        of_subject = (rng.random(subjects) < truth).astype(float)  # a subject's scans are all alike
        members = np.eye(classes, dtype=bool)[rng.integers(classes, size=subjects)]
        if several:
            members |= rng.random((subjects, classes)) < 0.4
        values = of_subject[owners, None]
        found = average(values, values, members[owners], owners, Bootstrap(200, int(rng.integers(1 << 30))))
        covered += (found.low[:, 0] <= truth) & (truth <= found.high[:, 0])
    assert (covered[:2] / studies > 0.88).all()  # macro, micro
    assert (covered / studies > 0.8).all()  # about ten subjects a class: percentile intervals are a little narrow
    assert (covered / studies < 1).all()
