"""One snapshot in several threads, as a service has it, or a page that reads its images side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any, TypeVar

from medret.index import KINDS
from medret.search import Hit, Snapshot, open_snapshot
from medret.search.options import LATE, VOLUME, VOTE

THREADS = 6
ROUNDS = 3  # each with a snapshot that was just opened: it is first uses that meet

T = TypeVar("T")
R = TypeVar("R")


def _identify(snapshot: Snapshot, sha256: str) -> tuple[str, str | None]:
    return snapshot.corpus.identify("query.nii.gz", snapshot.corpus.with_content(sha256))


def test_content_is_looked_up_in_several_threads(made_store: Any) -> None:
    for _ in range(10 * ROUNDS):
        identify = partial(_identify, open_snapshot(made_store.uri))
        found = at_once(identify, [f"{number:064x}" for number in range(THREADS)])
        assert [volume_id for volume_id, _ in found] == made_store.ids[:THREADS]


def test_searches_in_several_threads_find_what_one_finds(made_store: Any) -> None:
    def ask(snapshot: Snapshot, number: int) -> list[list[Hit]]:
        asked = list(product((VOLUME, VOTE, LATE), KINDS, (None, "organ = 'Liver'")))
        turned = asked[number * 3 :] + asked[: number * 3]  # no two threads ask the same at the same time
        return [
            snapshot.search(made_store.ids[number], k=4, mode=mode, index=kind, where=where)
            for mode, kind, where in turned
        ]

    alone = open_snapshot(made_store.uri)
    expected = [ask(alone, number) for number in range(THREADS)]
    for _ in range(ROUNDS):
        assert at_once(partial(ask, open_snapshot(made_store.uri)), range(THREADS)) == expected


def at_once(call: Callable[[T], R], arguments: Iterable[T]) -> list[R]:
    """The call for each argument, all of them begun at the same moment."""
    given = list(arguments)
    begin = threading.Barrier(len(given), timeout=60)

    def begun(argument: T) -> R:
        begin.wait()
        return call(argument)

    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(begun, given))
