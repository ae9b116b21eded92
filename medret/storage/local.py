"""Files of this machine's disks and mounts, read so that none of them can hold up a run.

A FIFO, a socket or a device is refused after it was opened, which never waits. A mount that answers no more is given up
after a while: the thread that waits for it stays behind, the run goes on.
"""

from __future__ import annotations

import errno
import io
import os
import queue
import stat
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
Beat = Callable[[], None]

# Longer than an NFS client waits before it asks again (three minutes by default), and than tapes are mounted for a
# recall; shorter than a night.
STALL_S = 300.0
STALL_AGAIN_S = 10.0  # while an earlier read of this process still waits: most likely for the same mount
PIECE_BYTES = 8 << 20

_waiting: set[threading.Thread] = set()


class StalledError(OSError):
    """A file gave no byte for so long that it was given up."""


class NotAFileError(OSError):
    """What was opened is a FIFO, a socket or a device."""


def patiently(operation: Callable[[Beat], Result], name: str) -> Result:
    """What `operation` gives, or StalledError when it shows no sign of life for `STALL_S`.

    operation: runs in a thread of its own and calls the function that it gets whenever it makes progress. name: what it
    works on, for the message.
    """
    said: queue.SimpleQueue[tuple[Result | None, BaseException | None] | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            said.put((operation(lambda: said.put(None)), None))
        except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
            said.put((None, error))
        finally:
            _waiting.discard(thread)

    thread = threading.Thread(target=work, daemon=True, name=f"reading {name}")
    limit_s = STALL_AGAIN_S if _waiting else STALL_S
    thread.start()
    while True:
        try:
            found = said.get(timeout=limit_s)
        except queue.Empty:
            _waiting.add(thread)
            raise StalledError(
                errno.ETIMEDOUT, f"nothing came for {limit_s:g} s; is the mount it lies on alive?", name
            ) from None
        if found is not None:
            result, error = found
            if error is not None:
                raise error
            return result  # type: ignore[return-value]  # without an error it is the result


def read_file(path: str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes `start` to `end` (default: all) of a regular file; raises OSError."""
    return patiently(lambda beat: _read(path, start, end, beat), path)


def each_piece(path: str, operation: Callable[[bytes], object]) -> None:
    """Call `operation` with the bytes of a regular file, piece by piece; raises OSError."""

    def pieces(beat: Beat) -> None:
        with _opened(path) as file:
            while piece := file.read(PIECE_BYTES):
                operation(piece)
                beat()

    patiently(pieces, path)


def _read(path: str, start: int, end: int | None, beat: Beat) -> bytes:
    content = io.BytesIO()  # gives its own memory away at the end: nothing is held twice
    with _opened(path) as file:
        file.seek(start)
        left = PIECE_BYTES if end is None else end - start
        while piece := file.read(min(left, PIECE_BYTES)):
            content.write(piece)
            left -= len(piece) if end is not None else 0
            beat()
    return content.getvalue()


def _opened(path: str) -> io.FileIO:
    """A regular file, opened without waiting for whoever might write into it."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return io.FileIO(file)
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise NotAFileError(errno.EINVAL, "it is no regular file, but a FIFO, a socket or a device", path)
