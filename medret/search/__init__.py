"""Opening what was published, and retrieving from it. Imports neither ray nor torch."""

from __future__ import annotations

from medret.search.hit import Hit, SliceMatch, SlicePair
from medret.search.snapshot import Snapshot, open_snapshot

__all__ = ["Hit", "SliceMatch", "SlicePair", "Snapshot", "open_snapshot"]
