"""The options of a search: checked when they are made, and what the score of a hit is called follows from them."""

from __future__ import annotations

from typing import Any

import pytest

from medret.search.options import MODES, SCORES, SearchKeywords, SearchOptions


def test_every_mode_has_its_own_words() -> None:
    assert set(SCORES) == set(MODES)
    assert len({SearchOptions(mode=mode).score_words() for mode in MODES}) == len(MODES)


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
def test_the_words_say_what_the_number_is(options: dict[str, Any], words: str) -> None:
    assert words in SearchOptions(**options).score_words()


def test_a_part_of_a_query_is_compared_slice_by_slice() -> None:
    assert SearchOptions(slices="3:9").used_mode == "late"
    assert SearchOptions().used_mode == "volume"


def test_keywords_are_the_fields() -> None:
    """Type checkers and editors are shown the fields of the dataclass, with their types."""
    keywords = {name: hint.__forward_arg__ for name, hint in SearchKeywords.__annotations__.items()}
    assert keywords == SearchOptions.__annotations__
