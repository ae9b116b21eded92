"""Who asks: callers and what each may see; and the record of what a request asked for and was shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi import Request


@dataclass(frozen=True)
class Caller:
    """Who asks. where: the filter that every answer is restricted to; None: all volumes."""

    name: str
    where: str | None = None


LOCAL = Caller("local")


@dataclass
class Record:
    """One request. asked: its options. uploads: sha256 of uploaded volumes. shown: volume_ids. seconds: by stage."""

    asked: dict[str, Any] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def caller_of(request: Request) -> Caller:
    """The caller of a request, as the guard found it."""
    caller: Caller = getattr(request.state, "caller", LOCAL)
    return caller


def record_of(request: Request) -> Record:
    """The record of a request."""
    record: Record | None = getattr(request.state, "record", None)
    if record is None:
        record = request.state.record = Record()
    return record
