"""Progress on standard error, and files that a command was asked to write."""

from __future__ import annotations

import sys
from pathlib import Path

from medret.errors import UsageError
from medret.visible import visible


def report(text: str) -> None:
    """One line of progress, overwritten by the next, where a person looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{visible(text)}")
        sys.stderr.flush()


def clear() -> None:
    """Take the line of progress away."""
    report("")


def write_text(path: Path, text: str) -> None:
    """Write a file, with the folders above it; raises UsageError where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
