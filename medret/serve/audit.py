"""The audit log: one JSON line per request, appended at once. What cannot be logged is not answered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from medret.errors import UsageError


class AuditLog:
    """A file that lines are appended to; another takes its place when it was moved away. Raises UsageError.

    Several processes may append to one file: each line is one write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._is_torn = False  # whether the last line has no end
        try:
            self._file = self._open()
        except OSError as error:
            raise UsageError(f"audit log {path} cannot be written: {error.strerror or error}") from error

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; raises OSError."""
        self._follow()
        text = json.dumps(line, separators=(",", ":"))  # in ASCII: no reader sees a line end within it
        data = b"\n" * self._is_torn + text.encode() + b"\n"
        written = os.write(self._file, data)
        self._is_torn = 0 < written < len(data)
        if written < len(data):
            raise OSError(f"{self._path}: only {written} of {len(data)} bytes were written")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _follow(self) -> None:
        """Open the file again if its name is another's, as after a rotation."""
        here = os.fstat(self._file)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            named = None
        if named is None or (named.st_dev, named.st_ino) != (here.st_dev, here.st_ino):
            replaced = self._open()
            os.close(self._file)
            self._file = replaced
