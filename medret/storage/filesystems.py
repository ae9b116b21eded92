"""Filesystems behind URIs: open and list them, retry transient failures, turn the others into medret's errors.

    what happened                                                          error                exit
    an unknown scheme, a filesystem within another                         UsageError           2
    a library that is not installed                                        MissingPackageError  2
    a remote store does not answer, or refuses                             UnreachableError     1
    a local path cannot be read or written                                 StorageError         1

A missing object stays a FileNotFoundError: what it means depends on the caller.

Retries have two layers. The S3 client repeats single requests (500, 503 SlowDown, resets, timeouts); what it gives up
on, and bodies that stop half-way, are repeated here as whole operations, with growing pauses. Both are counted for the
run report.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from typing import Any, TypeVar

from medret.errors import MedretError, MissingPackageError, StorageError, UnreachableError, UsageError, missing_package
from medret.storage.uris import check_names, options_at, redacted, scheme_of

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Details = dict[str, dict[str, Any]]

REQUEST_ATTEMPTS = 5  # per S3 request
ATTEMPTS = 4  # per whole operation
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30  # between two chunks of a body
CONNECTIONS = 32  # to S3, at a time: listings, looks and the parts of a series are asked for side by side

_STORE_ERRORS = (OSError, ValueError, EOFError, NotImplementedError)
_TRANSIENT_ERRNO = frozenset(
    {errno.EREMOTEIO, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}
)
_TRANSIENT_NAMES = frozenset(
    {
        "ClientPayloadError", "ClientOSError", "ServerDisconnectedError", "ConnectionResetError", "IncompleteRead",
        "IncompleteReadError", "ReadTimeoutError", "ConnectTimeoutError", "FSTimeoutError", "HTTPClientError",
        "ResponseStreamingError", "ConnectionClosedError", "SocketTimeoutError", "AioReadTimeoutError",
    }
)  # fmt: skip

_lock = threading.Lock()
_counted = 0


def is_store_failure(error: Exception) -> bool:
    """Whether an error comes from outside the program: from the system, or of a type that a library defines."""
    if isinstance(error, MedretError):
        return False
    return isinstance(error, _STORE_ERRORS) or type(error).__module__ != "builtins"


def in_words(error: BaseException) -> str:
    """Another library's error as one line, with secrets in URIs redacted."""
    return redacted(" ".join(str(error).split()) or type(error).__name__)


def cat(fs: Any, path: str, start: int | None, end: int | None) -> bytes:
    """The bytes of an object from `start` to `end` that exist; S3 refuses a range that begins at the end."""
    try:
        data: bytes = with_retries(lambda: fs.cat_file(path, start=start, end=end))
    except OSError as error:
        answer = getattr(error.__cause__, "response", None)
        failure = answer.get("Error") if isinstance(answer, Mapping) else None
        if not isinstance(failure, Mapping) or failure.get("Code") not in ("InvalidRange", "416"):
            raise
        return b""
    return data


@contextmanager
def reaching(uri: str, verb: str) -> Iterator[None]:
    """Turn any failure of a store into a StorageError; FileNotFoundError stays. verb: a participle, such as "read"."""
    try:
        yield
    except FileNotFoundError as error:
        if not _was_unreachable(error):
            raise
        raise _unreachable(uri, verb, error.__cause__ or error) from error
    except IsADirectoryError as error:
        raise UsageError(f"{uri} is a folder, expected a file") from error
    except Exception as error:
        if not is_store_failure(error):
            raise
        if scheme_of(uri):
            raise _unreachable(uri, verb, error) from error
        raise StorageError(
            f"{uri} cannot be {verb}: {in_words(error)}; check the path, the permissions and the free space"
        ) from error


def _was_unreachable(error: FileNotFoundError) -> bool:
    """Whether the server did not answer or the connection broke: fsspec's HTTP reports that as a missing file."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)


def _unreachable(uri: str, verb: str, error: BaseException) -> UnreachableError:
    advice = "check the address, the credentials and the network"
    return UnreachableError(f"{redacted(uri)} cannot be {verb}: {in_words(error)}; {advice}")


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Open the fsspec filesystem of a URI; return it and the filesystem's own path.

    uri: used literally (see storage.uris). Raises UsageError, MissingPackageError, UnreachableError.
    """
    import fsspec

    scheme = scheme_of(uri)
    given = options_at(uri)
    try:
        kind = fsspec.get_filesystem_class(scheme or "file")
        check_names(uri, given, kind)
    except ImportError as error:
        needed = MissingPackageError(f"{redacted(uri)} needs a library that is not installed: {in_words(error)}")
        raise missing_package(error) or needed from error
    except ValueError as error:
        raise UsageError(f"{redacted(uri)}: medret knows no filesystem for {scheme}://") from error
    with reaching(uri, "opened"), _understood(uri, given):
        options = options_of(scheme, given) | kind._get_kwargs_from_urls(uri)  # noqa: SLF001  # such as the host
        fs = fsspec.filesystem(scheme or "file", **options)
        if given and hasattr(fs, "connect"):  # a wrong option of S3 shows when its client is made
            fs.connect()
        return fs, str(kind._strip_protocol(uri))


@contextmanager
def _understood(uri: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a library says about options that it does not understand into a UsageError."""
    try:
        yield
    except Exception as error:
        if not given or isinstance(error, OSError):
            raise
        names = ", ".join(sorted(given))
        raise UsageError(
            f"{redacted(uri)} cannot be opened with the storage options {names}: {in_words(error)}"
        ) from error


def tree(fs: Any, root: str) -> Details:
    """List all files below `root`: the filesystem's own path -> its details. If `root` is a file, just that one.

    One listing if the store has such a request, else folder by folder, because fsspec's own walk silently passes over
    folders that it cannot list: an archive would look as if it had shrunk. Raises FileNotFoundError if nothing is
    there, or whatever the filesystem's library raises.
    """
    fs.invalidate_cache()
    if not _walks(fs):
        details: Details = with_retries(lambda: fs.find(root, detail=True))
        return details
    details, folders = {}, [root]
    while folders:
        folder = folders.pop()
        try:
            listing = with_retries(partial(fs.ls, folder, detail=True))
        except FileNotFoundError:
            if folder == root:
                raise
            continue  # removed since its parent was listed
        for detail in listing:
            name = detail["name"].rstrip("/")
            if detail["type"] != "directory":
                details[name] = detail
            elif name != folder:
                folders.append(name)
    if not details and (detail := with_retries(lambda: fs.info(root)))["type"] == "file":
        return {root: detail}
    return details


def _walks(fs: Any) -> bool:
    """Whether its `find` is fsspec's walk instead of its own listing."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    if fs.async_impl:
        return type(fs)._find is AsyncFileSystem._find  # noqa: SLF001
    return type(fs).find is AbstractFileSystem.find


def retries() -> int:
    """How many requests and operations this process has repeated."""
    return _counted


def _count() -> None:
    global _counted  # noqa: PLW0603  # one count per process, over all filesystems
    with _lock:
        _counted += 1


def is_transient(error: BaseException) -> bool:
    """Whether an error may go away: the store is busy or broke the connection. A wrong address does not."""
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    if isinstance(error, TimeoutError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return type(error).__name__ in _TRANSIENT_NAMES


def with_retries(operation: Callable[[], Result]) -> Result:
    """Call `operation`, retrying transient errors with exponential backoff; re-raise the last one."""
    for attempt in range(1, ATTEMPTS):
        try:
            return operation()
        except Exception as error:
            if not is_transient(error):
                raise
            logger.warning("attempt %d of %d failed, trying again: %r", attempt, ATTEMPTS, error)
        _count()
        time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5))
    return operation()


def options_of(protocol: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """fsspec options that make filesystems of this protocol retry and count their requests, and the `given` ones."""
    if protocol not in ("s3", "s3a"):
        return dict(given)
    options = dict(given)
    config = {
        "retries": {"mode": "standard", "max_attempts": REQUEST_ATTEMPTS},
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "max_pool_connections": CONNECTIONS,
    }
    config |= options.pop("config_kwargs", {})
    return {"session": _s3_session(options.pop("profile", None)), "config_kwargs": config, **options}


@cache
def _s3_session(profile: str | None) -> Any:
    """A session of the S3 client. profile: of the user's AWS configuration."""
    from aiobotocore.session import AioSession

    session = AioSession(profile=profile)
    session.register("needs-retry.s3", _seen)
    # Half of the time that a page of a listing takes is spent in botocore's own parser of times.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
    return session


def _moment(value: Any) -> datetime:
    """A time in an answer of S3: ISO 8601 in listings, another form elsewhere."""
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        parsed: datetime = parse_timestamp(value)
        return parsed


def _seen(response: Any = None, caught_exception: Any = None, attempts: int = 1, **_: Any) -> None:
    """Count a failed attempt at a request that will be repeated. Returns None: botocore's own handlers decide that."""
    bad = caught_exception is not None or (response is not None and response[0].status_code >= 500)
    if bad and attempts < REQUEST_ATTEMPTS:
        _count()
        problem = caught_exception or f"status {response[0].status_code}"
        logger.info("S3 request failed, attempt %d of %d: %s", attempts, REQUEST_ATTEMPTS, problem)
