"""Keep answers without keeping what they are about: open files go as soon as nobody uses a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from threading import Lock
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakMethod

Answer = TypeVar("Answer")
Subject = TypeVar("Subject")


def keep_answers(method: Callable[..., Answer], count: int) -> Callable[..., Answer]:
    """The bound method with its last answers kept. Its object may hold it: `lru_cache` alone would make a cycle."""
    weak = WeakMethod(method)

    def answer(*arguments: Hashable) -> Answer:
        bound = weak()
        assert bound is not None, "the method is called through its object"
        return bound(*arguments)

    return lru_cache(count)(answer)


def made_once(make: Callable[[Subject], Answer]) -> Callable[[Subject], Answer]:
    """What `make` gives for a subject, made once and kept as long as the subject. The answer must not hold it."""
    answers: WeakKeyDictionary[Subject, Answer] = WeakKeyDictionary()
    making = Lock()

    def answer(subject: Subject) -> Answer:
        with making:
            if subject not in answers:
                answers[subject] = make(subject)
            return answers[subject]

    return answer
