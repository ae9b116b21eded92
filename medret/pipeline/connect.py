"""Connect to Ray: the one that is connected already, the cluster at RAY_ADDRESS, or one of this machine for this run.

The Ray of this machine has its own folder and token, listens on loopback only, and leaves nothing behind:

    <temporary folder>/medret-XXXXXXXX/     0700
        medret-ray.lock                     locked by the run: a folder whose lock is free is left over
        r/session_.../                      Ray's sockets and logs

All its processes are in one process group, so that a signal to the run's group reaches only the run. The leader of the
group is the guard: a shell that waits until the run ends, however it ends, and then kills the group. Without the guard,
Ray's agents outlive a killed driver by some seconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import ray
from ray._private import ray_constants

from medret.errors import MedretError, StoppedError, UnreachableError

ANSWER_S = 60.0  # for a cluster to answer
START_S = 240.0  # for a Ray of this machine to start: ten on a free one
BUSY_WORDS = ("timed out", "timeout", "failed to start")
PREFIX = "medret-"
LOCK = "medret-ray.lock"
FILES = "r"
SOCKET_PATH_BYTES = 107  # what Unix allows
SESSION = "session_2026-01-31_23-59-59_999999_{}/sockets/plasma_store"  # and the process id
IDLE_WORKER_S = 600  # that a process of a local Ray is kept for the next task
GUARD = 'trap "" HUP INT TERM; read _; kill -KILL 0'
SETTINGS = {
    # Ray Data's actors log a known harmless line as an error (ray-project/ray#53727) to every user's terminal, and Ray
    # says there that it was told not to.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray ends workers that idle for a second where they are more than the CPUs, actors among them: on a small machine
    # nearly every reading and writing task then waits for a new process and its imports.
    "RAY_idle_worker_killing_time_threshold_ms": str(1000 * IDLE_WORKER_S),
    # Without a token of its own, Ray writes one into the home folder, for all to read.
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


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


_group: int | None = None  # of the processes that this process forks for Ray; None while it forks for others


def _join_group() -> None:
    if _group is not None:
        os.setpgid(0, _group)


os.register_at_fork(after_in_child=_join_group)


@contextmanager
def local_folder() -> Iterator[Path]:
    """A folder for Ray, 0700, short enough for its sockets; removed in the end, with what earlier runs left behind.

    After a failure it stays for whoever reads the logs in it, until the next run. Raises MedretError where there is no
    place for it.
    """
    base = _base()
    remove_leftovers(base)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    except OSError as error:
        raise MedretError(
            f"Ray could not be started: no folder can be made in {base}: {error.strerror}; set TMPDIR to a folder that "
            "can be written"
        ) from error
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        except StoppedError:
            _remove(folder)
            raise
        _remove(folder)


def remove_leftovers(base: Path) -> None:
    """Remove folders of runs that have ended: medret's by name, this user's, and with a lock that nobody holds."""
    for folder in base.glob(f"{PREFIX}????????"):
        with suppress(OSError):
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    """The lock goes last: without it, nobody would know the folder as a leftover."""
    shutil.rmtree(folder / FILES, ignore_errors=True)
    if not (folder / FILES).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _base() -> Path:
    """The folder for temporary files: RAY_TMPDIR if given, else the usual one, if Ray's socket names fit there."""
    given = os.environ.get("RAY_TMPDIR")
    base = Path(given or tempfile.gettempdir())
    below = f"/{PREFIX}XXXXXXXX/{FILES}/{SESSION.format(os.getpid())}"
    most = SOCKET_PATH_BYTES - len(below)
    if len(os.fsencode(base)) <= most:
        return base
    if given:
        raise MedretError(
            f"Ray could not be started: RAY_TMPDIR={given} has {len(os.fsencode(base))} bytes, and names of Ray's "
            f"sockets below it would pass the {SOCKET_PATH_BYTES} that the system allows; set it to a folder whose "
            f"name has at most {most} bytes, such as /tmp"
        )
    return Path("/tmp")  # noqa: S108  # a folder of our own is made in it


@contextmanager
def guarded() -> Iterator[int]:
    """The process group for Ray's processes; all in it are killed when the block or this process ends."""
    guard = subprocess.Popen(  # noqa: S603  # nothing in it comes from outside
        ["/bin/sh", "-c", GUARD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        process_group=0,
    )  # fmt: skip
    assert guard.stdin is not None
    try:
        yield guard.pid
    finally:
        guard.stdin.close()
        guard.wait()


def start(folder: Path, group: int) -> None:
    """Start Ray with its files below `folder` and its processes in a process group, and connect to it."""
    global _group  # noqa: PLW0603  # what is forked has no other way to know
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    # The one way to have Ray listen on loopback alone: it takes any loopback address for the machine's outer one.
    ray_constants.ENABLE_RAY_CLUSTER = False
    _group = group
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / FILES),
        )
    finally:
        _group = None
        ray_constants.ENABLE_RAY_CLUSTER = clusters
