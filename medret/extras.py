"""What to say when a package is not installed that only some uses of medret need."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from medret.errors import MissingPackageError

# package -> the extra of pyproject.toml that brings it
EXTRAS = {
    "faiss": "search",
    "ray": "job",
    "nibabel": "job",
    "torch": "models",
    "torchvision": "models",
    "timm": "models",
    "huggingface_hub": "models",
    "safetensors": "models",
    "transformers": "hf",
    "dreamsim": "dreamsim",
    "s3fs": "s3",
    "shtab": "completion",
}


def missing_package(error: BaseException | None) -> MissingPackageError | None:
    """The error to show where `error`, or what caused it, is that a package of an extra is not installed."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            more = ' (or "medret[job]", which brings it too)' if error.name == "faiss" else ""
            return MissingPackageError(
                f'this needs {error.name}, which is not installed: pip install "medret[{EXTRAS[error.name]}]"{more}'
            )
        error = error.__cause__
    return None


@contextlib.contextmanager
def needs_extra() -> Iterator[None]:
    """Turns a missing package inside the block into a MissingPackageError that names the extra which brings it."""
    try:
        yield
    except ImportError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        raise missing from error


def require(*packages: str) -> None:
    """Raises MissingPackageError unless the packages are installed; imports none of them."""
    with needs_extra():
        for package in packages:
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)
