"""What every endpoint works with: the live stores, the settings, the threads, and the pictures that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from os import cpu_count
from time import perf_counter
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect

from medret.errors import UsageError
from medret.serve.access import Record
from medret.serve.audit import AuditLog
from medret.serve.live import LiveStores
from medret.serve.refusals import Refused
from medret.serve.server_metrics import Metrics
from medret.serve.slice_pictures import SlicePictures
from medret.serve.tokens import Tokens
from medret.serve.upload_queue import UploadQueue
from medret.visible import visible
from medret.volume import Limits

Answer = TypeVar("Answer")

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How much a server does at a time, and what it refuses.

    threads: requests that are answered at the same time: more than there are cores, for on two busy cores 4 threads
    answered three quarters of what 16 did. drawers: pictures that are drawn at the same time, each from a volume that
    may have to be read and decoded. pictures_bytes: decoded voxels that are kept.
    device, weights: for encoding uploads, as for a search.
    request_seconds: from a request that was received to its answer. body_bytes: of a JSON request.
    upload_bytes, upload_seconds: of the body of a request with files. volume_bytes: decoded, of an uploaded volume.
    encoder_slots: uploads that are decoded and encoded at a time. queue: further ones that are received or wait.
    uploads_per_caller: how many of one caller, over all. in_flight: requests under way, of any kind.
    """

    threads: int = field(default_factory=lambda: (cpu_count() or 1) + 14)
    drawers: int = field(default_factory=lambda: (cpu_count() or 1) + 2)
    pictures_bytes: int = GIB
    device: str = "auto"
    weights: Mapping[str, str] = field(default_factory=dict)
    request_seconds: float = 120
    body_bytes: int = 8 * MIB
    upload_bytes: int = 512 * MIB
    upload_seconds: float = 60
    volume_bytes: int = GIB
    encoder_slots: int = 1
    queue: int = 8
    uploads_per_caller: int = 4
    in_flight: int = 256


class Service:
    """The state of a server. It belongs to one event loop.

    tokens: None: whoever asks sees all, from this machine only. audit: None: requests are not logged.
    in_flight: how many requests are under way.
    """

    def __init__(
        self,
        live: LiveStores,
        settings: ServeSettings | None = None,
        *,
        tokens: Tokens | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self.live, self.tokens, self.audit = live, tokens, audit
        self.settings = settings or ServeSettings()
        self.threads = CapacityLimiter(self.settings.threads)
        self.drawers = CapacityLimiter(self.settings.drawers)
        self._unlimited = CapacityLimiter(inf)  # the limiter of a thread counts it already
        self.pictures = SlicePictures(self.settings.pictures_bytes)
        self.uploads = UploadQueue(self.settings.encoder_slots, self.settings.queue, self.settings.uploads_per_caller)
        self.in_flight = 0
        self.metrics = Metrics(live, self.uploads, lambda: self.in_flight)
        self.limits = Limits(max_voxels_bytes=self.settings.volume_bytes)

    @property
    def query_options(self) -> dict[str, Any]:
        """The options of a search that the server decides."""
        return {"device": self.settings.device, "weights": self.settings.weights}

    def check_filters(self) -> None:
        """Raise UsageError that names the token whose filter does not fit the open snapshots."""
        for caller in [] if self.tokens is None else self.tokens.callers:
            try:
                self.live.current.view(caller.where)
            except UsageError as error:
                raise UsageError(f"the filter of token '{visible(caller.name)}' cannot be used: {error}") from error

    async def in_thread(
        self,
        function: Callable[[], Answer],
        limiter: CapacityLimiter,
        record: Record,
        stage: str,
        *,
        is_gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> Answer:
        """The result of a function in one of a limiter's threads; raises Refused when the time is over.

        A thread cannot be stopped: it ends on its own, and nothing else begins in its place until then.
        is_gone: whether nobody waits for the answer any more, asked before the thread begins; then it raises
        ClientDisconnect.
        """
        asked, began = perf_counter(), 0.0

        async def work() -> Answer:
            nonlocal began
            async with limiter:
                began = perf_counter()
                record.seconds["wait"] = began - asked
                if is_gone is not None and await is_gone():
                    raise ClientDisconnect
                try:
                    return await to_thread.run_sync(function, limiter=self._unlimited)
                finally:
                    record.seconds[stage] = perf_counter() - began

        task = asyncio.create_task(work())
        done, _ = await asyncio.wait({task}, timeout=self.settings.request_seconds)
        if done:
            return task.result()
        if not began:
            task.cancel()
        task.add_done_callback(_forget)
        raise Refused(503, "too_slow", f"there is no answer after {self.settings.request_seconds:g} s", retry_after=10)


def _forget(task: asyncio.Task[Any]) -> None:
    """Take the result of a task that nobody waits for, so that its error is not reported as lost."""
    if not task.cancelled():
        task.exception()
