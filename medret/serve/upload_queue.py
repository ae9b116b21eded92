"""How many uploads there may be at a time: of one caller, of all, and in the encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from anyio import CapacityLimiter

from medret.serve.refusals import Refused

RETRY_SECONDS = 5


class UploadQueue:
    """Places for uploads, from their first byte to their answer. Belongs to one event loop.

    slots: how many are decoded and encoded at a time. queue: how many more are received or wait. per_caller: how many
    of one caller, over all.
    """

    def __init__(self, slots: int, queue: int, per_caller: int) -> None:
        self.slots = CapacityLimiter(slots)
        self._places, self._per_caller = slots + queue, per_caller
        self._of_callers: Counter[str] = Counter()
        self.refused = 0
        self.received_bytes = 0

    @property
    def active(self) -> int:
        """How many are decoded or encoded now."""
        return self.slots.borrowed_tokens

    @property
    def waiting(self) -> int:
        """How many are received, or wait for a slot."""
        return max(0, self._of_callers.total() - self.active)

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Hold a place; raises Refused if there is none."""
        if self._of_callers[caller] >= self._per_caller:
            self.refused += 1
            raise Refused(
                429,
                "too_many_uploads",
                f"{self._per_caller} uploads of this caller are under way, as many as one may have",
                retry_after=RETRY_SECONDS,
            )
        if self._of_callers.total() >= self._places:
            self.refused += 1
            raise Refused(
                503,
                "busy",
                f"{self._places} uploads are under way, as many as this server takes",
                retry_after=RETRY_SECONDS,
            )
        self._of_callers[caller] += 1
        try:
            yield
        finally:
            self._of_callers[caller] -= 1
            if not self._of_callers[caller]:
                del self._of_callers[caller]
