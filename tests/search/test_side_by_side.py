from __future__ import annotations

import multiprocessing
import threading

import pytest

from medret.search.index_search import parallel_map


def test_answers_come_in_the_order_of_the_arguments() -> None:
    assert parallel_map(str, range(20), 3) == [str(number) for number in range(20)]
    assert parallel_map(str, [], 3) == []


def test_calls_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)
    assert sorted(parallel_map(lambda _: both.wait(), range(2), 2)) == [0, 1]


def test_one_at_a_time_stays_in_this_thread() -> None:
    assert parallel_map(lambda _: threading.get_ident(), range(3), 1) == [threading.get_ident()] * 3


def test_an_error_of_one_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda number: 1 // number, [1, 0, 2], 2)


def test_a_forked_process_has_threads_of_its_own() -> None:
    parallel_map(str, range(4), 2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_in_a_fork).get(timeout=60) == ["0", "1", "2"]


def _in_a_fork() -> list[str]:
    return parallel_map(str, range(3), 2)
