"""C18: what the score of a hit is called follows from how it was searched."""

from __future__ import annotations

import pytest

from medret.search.modes import MODES
from medret.search.options import SearchOptions
from medret.search.score import WORDS, mode_of, score_words


def test_every_mode_has_its_own_words() -> None:
    assert set(WORDS) == set(MODES)
    assert len({score_words({"mode": mode}) for mode in MODES}) == len(MODES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "vectors"),
        ({"mode": "vote"}, "share"),
        ({"slices": "3:9"}, "mean, over the query's slices"),
        ({"mode": "late", "symmetric": True}, "averaged"),
        ({"model": {"a": 1.0, "b": 2.0}}, "weighted mean of the members' scores, each the cosine"),
        ({"model": {"a": 1.0, "b": 2.0}, "fuse": "rrf"}, "reciprocal ranks"),
    ],
)
def test_the_words_say_what_the_number_is(options: SearchOptions, words: str) -> None:
    assert words in score_words(options)


def test_a_part_of_a_query_is_compared_slice_by_slice() -> None:
    assert mode_of({"slices": "3:9"}) == "late"
    assert mode_of({}) == "volume"
