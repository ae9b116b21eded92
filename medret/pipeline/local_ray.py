"""A Ray of this machine alone, for one run: its own folder, its own token, loopback only, and nothing that outlives it.

    <temporary folder>/medret-XXXXXXXX/     0700
        medret-ray.lock                     held by the run: a folder whose lock is free is a leftover
        r/session_.../                      Ray's sockets and logs

All processes of this Ray are in a process group of their own, so that a signal to the run's group reaches the run
alone. The leader of that group is the guard: a shell that waits for the run to end, however it ends, and then kills
the group. Without it, Ray's agents outlive a driver that was killed by some seconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private import ray_constants

from medret.errors import MedretError, StoppedError

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
