"""Keep the last answers of a method without keeping its object: open files go as soon as nobody uses a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import TypeVar
from weakref import WeakMethod

Answer = TypeVar("Answer")


def keep_answers(method: Callable[..., Answer], count: int) -> Callable[..., Answer]:
    """The bound method with its last answers kept. Its object may hold it: `lru_cache` alone would make a cycle."""
    weak = WeakMethod(method)

    def answer(*arguments: Hashable) -> Answer:
        bound = weak()
        assert bound is not None, "the method is called through its object"
        return bound(*arguments)

    return lru_cache(count)(answer)
