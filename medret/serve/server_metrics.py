"""Metrics for Prometheus: requests, latency by stage, what is served, and uploads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medret.serve.access import Record
from medret.serve.live import LiveStores
from medret.serve.upload_queue import UploadQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, live: LiveStores, uploads: UploadQueue, in_flight: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
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
        self._sent_bytes = Counter("medret_sent_bytes", "Bodies of answers", registry=self._registry)
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
