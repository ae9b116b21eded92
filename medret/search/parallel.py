"""Calls in several threads: FAISS and NumPy let go of the interpreter while they compute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(call: Callable[[T], R], arguments: Iterable[T], at_once: int) -> list[R]:
    """The call for each argument, in their order, so many at the same time; the first error is raised."""
    given = list(arguments)
    at_once = min(at_once, len(given))
    if at_once < 2:
        return [call(one) for one in given]
    return list(_pool(os.getpid(), at_once).map(call, given))


@cache
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Kept, since starting threads takes as long as a search. A forked process has none of its parent's threads."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, thread_name_prefix="medret-search")
