"""What every endpoint works with: the live stores, the settings, the threads, and the pictures that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import cpu_count

from anyio import CapacityLimiter

from medret.serve.live import LiveStores
from medret.serve.slice_pictures import SlicePictures


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How much a server does at a time, and what it refuses.

    threads: requests that are answered at the same time. pictures_bytes: decoded voxels that are kept.
    device: for encoding uploads.
    """

    threads: int = field(default_factory=lambda: (cpu_count() or 1) + 2)
    pictures_bytes: int = 1 << 30
    device: str = "auto"


class Service:
    """The state of a server."""

    def __init__(self, live: LiveStores, settings: ServeSettings | None = None) -> None:
        self.live = live
        self.settings = settings or ServeSettings()
        self.threads = CapacityLimiter(self.settings.threads)
        self.pictures = SlicePictures(self.settings.pictures_bytes)
