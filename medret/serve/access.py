"""Who asks: callers, what each may see, and how a request names its caller."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request


@dataclass(frozen=True)
class Caller:
    """Who asks. where: the filter that every answer is restricted to; None: all volumes."""

    name: str
    where: str | None = None


LOCAL = Caller("local")


def caller_of(request: Request) -> Caller:
    """The caller of a request."""
    caller: Caller = getattr(request.state, "caller", LOCAL)
    return caller
