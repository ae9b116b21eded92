"""The stores that are served, always at their live snapshots: a new one is opened beside the old and takes its place.

A request ends on the snapshots that it began with. If one of them is removed from its store meanwhile, so that a file
is missing that was not open yet, the request is answered again from the live ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from threading import Event, Lock, Thread
from types import MappingProxyType
from typing import Any, TypeVar

from medret.errors import DroppedError, MedretError
from medret.index import EXACT, HNSW
from medret.search import Encoders, Snapshots, open_snapshot, open_snapshots
from medret.search.query import VolumeName
from medret.serve.volumes import listed
from medret.snapshot import current_id
from medret.storage import Location, redacted

Answer = TypeVar("Answer")

VIEWS_KEPT = 64  # restricted views of the open snapshots, one per distinct filter of a token
TRIES = 3  # of a request whose snapshot is removed under it
LOGGER = logging.getLogger(__name__)


class Opened:
    """The live snapshots at one moment. view: from a filter, or None, to the volumes that a caller may see."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots
        self.ids = tuple(contents.id for contents in snapshots.corpus.stores)
        self._restricted = lru_cache(VIEWS_KEPT)(snapshots.restricted)

    def view(self, where: str | None) -> Snapshots:
        """The snapshots as a caller sees them."""
        return self.snapshots if where is None else self._restricted(where)


class LiveStores:
    """Stores that are searched as one. uris: as they were named; raises the errors of `open_snapshot` for them.

    archives: store -> where its volumes are read, as in `open_snapshot`. Several threads may ask at the same time.
    """

    def __init__(
        self,
        uris: Sequence[str],
        *,
        archives: Mapping[str, str] = MappingProxyType({}),
        storage_options: Mapping[str, Any] | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        self._uris, self._archives, self._storage_options = tuple(uris), archives, storage_options
        self._encoders = encoders or Encoders()
        self._opening, self._stopped = Lock(), Event()
        self._opened = self._open()
        self._places = [Location(uri) for uri in uris]

    @property
    def current(self) -> Opened:
        """The snapshots that a request which begins now is answered from."""
        return self._opened

    def ask(self, question: Callable[[Opened], Answer]) -> Answer:
        """Answer a question from the live snapshots; again from newer ones if these are removed meanwhile.

        Raises the errors of the question, and DroppedError if no newer snapshot can be opened.
        """
        for _ in range(TRIES - 1):
            opened = self._opened
            try:
                return question(opened)
            except DroppedError as dropped:
                try:
                    self.refresh(opened)
                except MedretError as error:  # not the caller's fault, as a wrong option would be
                    raise dropped from error
        return question(self._opened)

    def refresh(self, seen: Opened | None = None) -> bool:
        """Open the live snapshots if they are others than those that are open; tell whether they were.

        seen: what the caller asked; if it is not current any more, nothing is opened.
        """
        with self._opening:
            if seen is not None and seen is not self._opened:
                return True
            live = tuple(current_id(place) for place in self._places)
            if live == self._opened.ids or None in live:  # nothing is published: the last snapshot stays
                return False
            self._opened = self._open()
            LOGGER.info("opened %s", ", ".join(self._opened.ids))
            return True

    def watch(self, every_seconds: float) -> None:
        """Refresh from a thread of its own until `close`. A store out of reach keeps what is open."""

        def look() -> None:
            while not self._stopped.wait(every_seconds):
                try:
                    self.refresh()
                except MedretError as error:
                    LOGGER.warning("the live snapshot cannot be opened: %s", redacted(str(error)))
                except Exception:  # whatever it was, the server goes on, and looks again
                    LOGGER.exception("the live snapshot cannot be opened")

        Thread(target=look, name="medret-live", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _open(self) -> Opened:
        opened = [
            open_snapshot(
                uri, archive=self._archives.get(uri), storage_options=self._storage_options, encoders=self._encoders
            )
            for uri in self._uris
        ]
        snapshots: Snapshots = opened[0] if len(opened) == 1 else open_snapshots(opened, encoders=self._encoders)
        _warm(snapshots)
        return Opened(snapshots)


def _warm(snapshots: Snapshots) -> None:
    """Open what nearly every request needs, so that the first one does not wait for it."""
    snapshots.labels()
    listed(snapshots, where=None, contains="", after=None, limit=1, facets=True)  # counts labels, once per snapshot
    stores = snapshots.corpus.stores
    held = [pair for pair in zip(stores, snapshots.corpus.labels, strict=True) if pair[1].num_rows]
    if held:
        contents, labels = held[0]
        built = all(HNSW in each.settings.kinds for each in stores)
        try:
            name = VolumeName(labels["volume_id"][0].as_py(), contents.uri)
            snapshots.search(name, 1, index=HNSW if built else EXACT)
        except MedretError as error:  # it is said to whoever asks
            LOGGER.warning("the first search failed: %s", redacted(str(error)))
