"""What a monitoring system can watch: Ray serves these to Prometheus beside its own metrics."""

from __future__ import annotations

from ray.util.metrics import Counter


class RunMetrics:
    """Counters of the work done. deploy/grafana.json shows them."""

    def __init__(self) -> None:
        by_stage = ("stage",)
        self._volumes = Counter("medret_volumes", "volumes through a stage", by_stage)
        self._slices = Counter("medret_slices", "slices through a stage", by_stage)
        self._seconds = Counter("medret_stage_seconds", "seconds of processing in a stage", by_stage)
        self._retries = Counter("medret_storage_retries", "storage requests that were repeated", by_stage)
        self._codes = Counter("medret_quarantined", "volumes put into quarantine", ("code",))

    def stage(self, stage: str, volumes: int, slices: int, seconds: float, retries: int) -> None:
        """Add a batch of a stage."""
        counters = (self._volumes, self._slices, self._seconds, self._retries)
        for counter, value in zip(counters, (volumes, slices, seconds, retries), strict=True):
            if value > 0:
                counter.inc(value, {"stage": stage})

    def quarantined(self, code: str) -> None:
        """Add a refused volume."""
        self._codes.inc(1, {"code": code})
