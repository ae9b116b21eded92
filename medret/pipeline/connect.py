"""Connecting to Ray: the one that is up already, the cluster of RAY_ADDRESS, or one of this machine for the run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import ray

from medret.errors import MedretError, UnreachableError
from medret.pipeline.local_ray import SETTINGS, guarded, local_folder, start

ANSWER_S = 60.0  # for a cluster to answer
START_S = 240.0  # for a Ray of this machine to start: ten on a free one
BUSY_WORDS = ("timed out", "timeout", "failed to start")


@contextmanager
def connected() -> Iterator[None]:
    """Use the Ray that is already connected, the cluster of RAY_ADDRESS (a submitted job), or one made for this run.

    Raises UnreachableError when the cluster does not answer, MedretError when Ray cannot be started here.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failed stream is told by medret, in one line
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # there Ray prints the logs of lost nodes
        if ray.is_initialized():
            yield
            return
        address = os.environ.get("RAY_ADDRESS")
        if address and address != "local":
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", SETTINGS["RAY_BACKEND_LOG_LEVEL"])
            with _attached(lambda: _join(address), ANSWER_S, lambda error: unreachable(address, error)):
                yield
            return
        with (
            local_folder() as folder,
            guarded() as group,
            _attached(lambda: start(folder, group), START_S, not_started),
        ):
            yield


def unreachable(address: str, error: BaseException) -> MedretError:
    """Why the cluster at RAY_ADDRESS cannot be used, and what to do, in one line."""
    text = str(error)
    if "://" in address and not address.startswith("ray://"):
        cure = (
            "that is the address of a dashboard, for `ray job submit --address`; a driver wants HOST:PORT of the "
            "cluster's head, as in RAY_ADDRESS=10.0.0.1:6379, or no RAY_ADDRESS at all for a Ray of this machine"
        )
    elif "token" in text.lower() or "unauthenticated" in text.lower():
        cure = (
            "it refused the token, or wants one: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as "
            "on its head"
        )
    elif isinstance(error, TimeoutError):
        cure = (
            f"nothing answered within {ANSWER_S:g} s; see that its head is up and can be reached from here, or unset "
            "RAY_ADDRESS for a Ray of this machine"
        )
    else:
        cure = f"{reason_of(error)}; see that its head is up, or unset RAY_ADDRESS for a Ray of this machine"
    return UnreachableError(f"the Ray cluster at RAY_ADDRESS={address} could not be reached: {cure}")


def not_started(error: BaseException) -> MedretError:
    """Why Ray did not start on this machine, and what to do, in one line."""
    reason = reason_of(error)
    busy = isinstance(error, TimeoutError) or any(word in reason.lower() for word in BUSY_WORDS)
    advice = "; run again when the machine is less busy" if busy else ""
    return MedretError(f"Ray could not be started: {reason}; nothing was changed{advice}")


def reason_of(error: BaseException) -> str:
    """The line of an error of Ray that says most: the last of a trace, else the first that does not announce a list."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback" in text:
        return lines[-1]
    return next((line for line in lines if not line.endswith(":")), lines[0] if lines else repr(error)).rstrip(".")


def _join(address: str) -> None:
    if "://" in address and not address.startswith("ray://"):
        raise ConnectionError(address)
    ray.init(log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def _attached(
    connect: Callable[[], None], seconds: float, failure: Callable[[BaseException], MedretError]
) -> Iterator[None]:
    """Be connected while the block runs.

    `connect` runs in a thread of its own, which stays until the end. There, Ray does not put its handler of SIGTERM
    over the run's; a signal to the run is heard while Ray starts; and a cluster that never answers can be given up.
    The thread stays because Linux kills Ray's processes when the thread that started them ends.
    """
    found: list[BaseException] = []
    ready, over = threading.Event(), threading.Event()

    def attach() -> None:
        try:
            connect()
        except BaseException as error:  # noqa: BLE001  # raised in the main thread
            found.append(error)
        ready.set()
        over.wait()

    threading.Thread(target=attach, name="ray", daemon=True).start()
    try:
        with _stderr_held_back():
            if not ready.wait(seconds):
                raise failure(TimeoutError(f"it did not answer within {seconds:g} s"))
            if found:
                raise failure(found[0]) from found[0]
        _take_signals_back()
        yield
    finally:
        if ready.is_set():
            ray.shutdown()
        over.set()


def _take_signals_back() -> None:
    """Ray's native code puts a handler of its own over this process's: one that ends it with a trace."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Drop what native code writes to standard error while Ray starts: what matters of it is in Ray's own error."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(terminal, 2)
    finally:
        os.close(terminal)
