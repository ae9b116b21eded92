"""What to say when a library is not installed that only some uses of medret need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from medret.errors import MissingPackageError


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turns a missing library inside the block into a MissingPackageError that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"this needs {error.name}, which is not installed: pip install 'medret[{extra}]'"
        ) from error
