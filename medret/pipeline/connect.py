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
from importlib import import_module
from pathlib import Path

import ray
from ray._private import node, ray_constants

from medret.errors import MedretError, StoppedError, UnreachableError

ANSWER_S = 60.0  # how long to wait for a cluster
START_S = 240.0  # how long to wait for a Ray of this machine; ten seconds are enough on a free one
STARTING_S = 15.0  # for a stopped run to let Ray finish starting: one that is killed meanwhile writes to the terminal
BUSY_WORDS = ("timed out", "timeout", "failed to start")
PREFIX = "medret-"
LOCK = "medret-ray.lock"
FILES = "r"
SOCKET_PATH_BYTES = 107  # the longest socket path that Unix allows
SESSION = "session_2026-01-31_23-59-59_999999_{}/sockets/plasma_store"  # and the process id
IDLE_WORKER_S = 600  # how long a local Ray keeps an idle process for the next task
GUARD = 'trap "" HUP INT TERM; read _; kill -KILL 0'
# Ray Data reads the metadata of a block in the step that takes the block, instead of passing the block on in a later
# step: medret's blocks are few, and each step costs the driver some milliseconds.
METADATA_AT_ONCE = ("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")
SETTINGS = {
    # Ray Data's actors log a known harmless line as an error to every user's terminal (ray-project/ray#53727).
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Where there are more workers (actors included) than CPUs, Ray ends those that are idle for a second: on a small
    # machine, nearly every reading and writing task would then wait for a new process and its imports.
    "RAY_idle_worker_killing_time_threshold_ms": str(1000 * IDLE_WORKER_S),
    # Without this token, Ray writes one into the home folder, readable by everyone.
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@contextmanager
def connected() -> Iterator[None]:
    """Use the Ray that is connected already, the cluster at RAY_ADDRESS (a submitted job), or one made for this run.

    Raises UnreachableError when the cluster does not answer, MedretError when Ray cannot be started here.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # Ray prints the logs of lost nodes to stdout
        if ray.is_initialized():
            _load_ray_data()
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
    """An error that says why the cluster at RAY_ADDRESS cannot be used and what to do, in one line."""
    text = "\n".join(_texts(error)).lower()
    if "://" in address and not address.startswith("ray://"):
        cure = (
            "this is the address of a dashboard, for `ray job submit --address`; a driver needs HOST:PORT of the "
            "cluster's head, as in RAY_ADDRESS=10.0.0.1:6379, or no RAY_ADDRESS at all for a Ray of this machine"
        )
    elif "token" in text or "unauthenticated" in text:
        cure = (
            "its token is missing here, or another one: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH as on its head"
        )
    elif isinstance(error, TimeoutError):
        cure = (
            f"nothing answered within {ANSWER_S:g} s; check that its head is up and can be reached from here, or unset "
            "RAY_ADDRESS for a Ray of this machine"
        )
    else:
        cure = f"{reason_of(error)}; check that its head is up, or unset RAY_ADDRESS for a Ray of this machine"
    return UnreachableError(f"the Ray cluster at RAY_ADDRESS={address} could not be reached: {cure}")


def not_started(error: BaseException) -> MedretError:
    """An error that says why Ray did not start on this machine and what to do, in one line."""
    reason = reason_of(error)
    busy = isinstance(error, TimeoutError) or any(word in reason.lower() for word in BUSY_WORDS)
    advice = "; run again when the machine is less busy" if busy else ""
    return MedretError(f"Ray could not be started: {reason}; nothing was changed{advice}")


def reason_of(error: BaseException) -> str:
    """The most telling line of a Ray error: the last one of a trace, else the first that does not end in a colon."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback" in text:
        return lines[-1]
    return next((line for line in lines if not line.endswith(":")), lines[0] if lines else repr(error)).rstrip(".")


def _texts(error: BaseException | None) -> Iterator[str]:
    """The texts of an error and of its causes: Ray says only there that a token was wrong."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def _join(address: str) -> None:
    if "://" in address and not address.startswith("ray://"):
        raise ConnectionError(address)
    ray.init(log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def _attached(
    connect: Callable[[], None], seconds: float, failure: Callable[[BaseException], MedretError]
) -> Iterator[None]:
    """Stay connected while the block runs.

    `connect` runs in a thread of its own. There, Ray cannot replace the run's handler of SIGTERM, the run hears signals
    while Ray starts, and the run can give up a cluster that never answers. The thread lives until the end, because
    Linux kills Ray's processes when the thread that started them ends.
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
            try:
                _load_ray_data()
                answered = ready.wait(seconds)
            except StoppedError:
                ready.wait(STARTING_S)
                raise
            if not answered:
                raise failure(TimeoutError(f"it did not answer within {seconds:g} s"))
            if found:
                raise failure(found[0]) from found[0]
        _take_signals_back()
        yield
    finally:
        if ready.is_set():
            ray.shutdown()
        over.set()


def _load_ray_data() -> None:
    """Import what the driver needs next; it reads its settings and sets its loggers when it is imported."""
    os.environ.setdefault(*METADATA_AT_ONCE)
    import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # medret reports a failed stream itself, in one line


def _take_signals_back() -> None:
    """Undo that Ray's native code replaced this process's handler by one that ends it with a trace."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Drop what native code writes to standard error while Ray starts; Ray's own error says all that matters."""
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


_group: int | None = None  # process group for processes forked for Ray; None while others are forked


def _join_group() -> None:
    if _group is not None:
        os.setpgid(0, _group)


os.register_at_fork(after_in_child=_join_group)


@contextmanager
def local_folder() -> Iterator[Path]:
    """Make a folder for Ray (mode 0700, short enough for its sockets), and remove it in the end.

    Also removes what earlier runs left behind. After a failure the folder stays until the next run, for its logs.
    Raises MedretError if no folder can be made.
    """
    base = _base()
    remove_leftovers(base)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    except OSError as error:
        raise MedretError(
            f"Ray could not be started: no folder can be made in {base}: {error.strerror}; set TMPDIR to a "
            "writable folder"
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
    """Remove the folders of runs that have ended: with medret's prefix, owned by this user, with a free lock."""
    for folder in base.glob(f"{PREFIX}????????"):
        with suppress(OSError):
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the lock last: a folder without it would not be recognised as a leftover."""
    shutil.rmtree(folder / FILES, ignore_errors=True)
    if not (folder / FILES).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _base() -> Path:
    """The folder for temporary files: RAY_TMPDIR if set, else the usual one if Ray's socket paths fit, else /tmp."""
    ray_tmpdir = os.environ.get("RAY_TMPDIR")
    base = Path(ray_tmpdir or tempfile.gettempdir())
    below = f"/{PREFIX}XXXXXXXX/{FILES}/{SESSION.format(os.getpid())}"
    most = SOCKET_PATH_BYTES - len(below)
    if len(os.fsencode(base)) <= most:
        return base
    if ray_tmpdir:
        raise MedretError(
            f"Ray could not be started: RAY_TMPDIR={ray_tmpdir} has {len(os.fsencode(base))} bytes, so paths of Ray's "
            f"sockets below it exceed the {SOCKET_PATH_BYTES} bytes that the system allows; set it to a folder whose "
            f"path has at most {most} bytes, such as /tmp"
        )
    return Path("/tmp")  # noqa: S108  # the run makes its own folder in it


@contextmanager
def guarded() -> Iterator[int]:
    """Yield a process group for Ray's processes. All of them are killed when the block or this process ends."""
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


class BareNode(node.Node):
    """A node without the processes that a run on one machine has no use for, and that it would wait for.

    They are Ray's dashboard, which starts even where it is switched off, the autoscaler's monitor, and the one that
    sends the logs of workers to the driver. A Ray that starts them in another way starts them as before.
    """

    def start_api_server(self, **_: object) -> None:
        """No dashboard."""

    def start_monitor(self) -> None:
        """No autoscaler."""

    def start_log_monitor(self) -> None:
        """No logs to the driver."""


def start(folder: Path, group: int) -> None:
    """Start Ray with its files below `folder` and its processes in process group `group`, and connect to it."""
    global _group  # noqa: PLW0603  # forked processes have no other way to know
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    clusters, whole = ray_constants.ENABLE_RAY_CLUSTER, node.Node
    # The only way to make Ray listen on loopback alone: it replaces a loopback address by the machine's outer one.
    ray_constants.ENABLE_RAY_CLUSTER = False
    node.Node = BareNode  # type: ignore[misc]  # the only way, too: ray.init has no option for it
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
        node.Node = whole  # type: ignore[misc]
        ray_constants.ENABLE_RAY_CLUSTER = clusters
