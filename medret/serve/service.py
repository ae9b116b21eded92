"""What every endpoint works with: the live stores, the settings, the threads, the places of uploads, and metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from os import cpu_count
from time import perf_counter
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from medret.errors import UsageError
from medret.serve.access import AuditLog, Record, Tokens
from medret.serve.live import LiveStores
from medret.serve.messages import Refused
from medret.serve.slice_pictures import SlicePictures
from medret.visible import visible
from medret.volume import Limits

Answer = TypeVar("Answer")
RETRY_SECONDS = 5  # until it may be of use to upload again
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of metrics
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

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


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, live: LiveStores, uploads: UploadQueue, in_flight: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = CounterMetric(
            "medret_requests", "Requests that were answered", ("method", "route", "status"), registry=self._registry
        )
        self._request_seconds = Histogram(
            "medret_request_seconds", "From request to answer", ("route",), registry=self._registry, buckets=SECONDS
        )
        self._stage_seconds = Histogram(
            "medret_stage_seconds",
            "Parts of a request: receive (uploads), wait, search, encode (with search), pictures",
            ("stage",),
            registry=self._registry,
            buckets=SECONDS,
        )
        self._sent_bytes = CounterMetric("medret_sent_bytes", "Bodies of answers", registry=self._registry)
        self._registry.register(_State(live, uploads, in_flight))

    def count(self, method: str, route: str, status: int, seconds: float, sent_bytes: int, record: Record) -> None:
        """Count one request."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        for stage, of_stage in list(record.seconds.items()):
            self._stage_seconds.labels(stage).observe(of_stage)
        self._sent_bytes.inc(sent_bytes)

    def text(self) -> bytes:
        """The metrics, as Prometheus reads them."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is so at the moment when it is asked for."""

    def __init__(self, live: LiveStores, uploads: UploadQueue, in_flight: Callable[[], int]) -> None:
        self._live, self._uploads, self._in_flight = live, uploads, in_flight

    def collect(self) -> Iterator[Metric]:
        snapshots = self._live.current.snapshots
        opened = GaugeMetricFamily("medret_open_snapshot", "Snapshots that are served", labels=("store", "snapshot"))
        for contents in snapshots.corpus.stores:
            opened.add_metric((contents.uri, contents.id), 1)
        yield opened
        yield GaugeMetricFamily("medret_volumes", "Volumes that can be found", value=snapshots.volumes)
        yield GaugeMetricFamily("medret_requests_in_flight", "Requests under way", value=self._in_flight())
        uploads = GaugeMetricFamily("medret_uploads", "Uploads under way", labels=("state",))
        uploads.add_metric(("waiting",), self._uploads.waiting)
        uploads.add_metric(("active",), self._uploads.active)
        yield uploads
        yield CounterMetricFamily(
            "medret_uploads_refused", "Uploads for which there was no place", value=self._uploads.refused
        )
        yield CounterMetricFamily("medret_upload_bytes", "Files that were received", value=self._uploads.received_bytes)
