"""Requests to an object store that fail for a moment: tried again with growing pauses, up to a cap, and counted.

Two layers. The S3 client itself repeats single requests (500, 503 SlowDown, resets, timeouts); what it gives up on, and
bodies that stop half-way, are repeated here as whole operations. Both are counted, so that a run report can say so.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")

REQUEST_ATTEMPTS = 5  # of a single S3 request
ATTEMPTS = 4  # of a whole operation
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30  # between two pieces of a body

_PASSING_ERRNO = frozenset(
    {errno.EREMOTEIO, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}
)
_PASSING_NAMES = frozenset(
    {
        "ClientPayloadError", "ClientOSError", "ServerDisconnectedError", "ConnectionResetError", "IncompleteRead",
        "IncompleteReadError", "ReadTimeoutError", "ConnectTimeoutError", "FSTimeoutError", "HTTPClientError",
        "ResponseStreamingError", "ConnectionClosedError", "SocketTimeoutError", "AioReadTimeoutError",
    }
)  # fmt: skip

_lock = threading.Lock()
_counted = 0


def retries() -> int:
    """How many requests or operations this process has had to repeat."""
    return _counted


def _count() -> None:
    global _counted  # noqa: PLW0603  # one number a process, whatever opened the filesystem
    with _lock:
        _counted += 1


def is_transient(error: BaseException) -> bool:
    """Whether an error is one that goes away: the store is busy or broke the connection; not a wrong address."""
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    if isinstance(error, TimeoutError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNO:
        return True
    return type(error).__name__ in _PASSING_NAMES


def with_retries(operation: Callable[[], Result]) -> Result:
    """What `operation` gives, tried again while its errors are passing ones; then the last error."""
    for attempt in range(1, ATTEMPTS):
        try:
            return operation()
        except Exception as error:
            if not is_transient(error):
                raise
        _count()
        time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5))
    return operation()


def options_of(protocol: str) -> dict[str, Any]:
    """fsspec options that make a filesystem of that protocol repeat and count its requests."""
    return _s3_options() if protocol in ("s3", "s3a") else {}


@cache
def _s3_options() -> dict[str, Any]:
    from aiobotocore.session import AioSession

    session = AioSession()
    session.register("needs-retry.s3", _seen)
    config = {
        "retries": {"mode": "standard", "max_attempts": REQUEST_ATTEMPTS},
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
    }
    return {"session": session, "config_kwargs": config}


def _seen(response: Any = None, caught_exception: Any = None, attempts: int = 1, **_: Any) -> None:
    """Called after every attempt at a request; says nothing about whether there is another, and counts bad ones."""
    bad = caught_exception is not None or (response is not None and response[0].status_code >= 500)
    if bad and attempts < REQUEST_ATTEMPTS:
        _count()
