from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medret.index.approximate import Distinct, first_equal
from medret.index.exact import MISSING

values = st.lists(st.integers(0, 5), min_size=1, max_size=20)


@given(values)
def test_first_equal_row(held: list[int]) -> None:
    vectors = np.array([[value, 1] for value in held], np.float16)
    assert first_equal(vectors).tolist() == [held.index(value) for value in held]


@given(values, st.sets(st.integers(0, 19)), st.integers(1, 25))
def test_expansion_is_what_a_search_of_all_rows_would_give(held: list[int], excluded: set[int], k: int) -> None:
    first = np.array([held.index(value) for value in held], np.int32)
    distinct = Distinct(first)
    gone = np.array(sorted(row for row in excluded if row < len(held)), np.int64)
    hidden = distinct.excluded_numbers(gone)
    numbers = np.setdiff1d(np.arange(len(distinct.rows)), [] if hidden is None else hidden)
    padded = np.concatenate([numbers, [MISSING]])[None]
    scores = np.where(padded == MISSING, -np.inf, np.array([*held, 0])[distinct.rows_of(padded)]).astype(np.float32)
    found = distinct.expand(scores, padded, k, gone)
    kept = [row for row in range(len(held)) if row not in gone]
    expected = sorted(kept, key=lambda row: (-held[row], row))[:k]
    assert found.rows[0][found.rows[0] != MISSING].tolist() == expected
    assert found.scores[0][: len(expected)].tolist() == [held[row] for row in expected]
    hidden_values = {held[row] for row in gone} - {held[row] for row in kept}
    assert {held[distinct.rows[number]] for number in ([] if hidden is None else hidden)} == hidden_values
