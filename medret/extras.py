"""Optional packages: name the extra that installs a missing one."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from medret.errors import MissingPackageError

# package -> the extra of pyproject.toml that installs it
EXTRAS = {
    "faiss": "search",
    "ray": "job",
    "duckdb": "job",
    "nibabel": "job",
    "torch": "models",
    "torchvision": "models",
    "timm": "models",
    "huggingface_hub": "models",
    "safetensors": "models",
    "transformers": "hf",
    "dreamsim": "dreamsim",
    "s3fs": "s3",
    "pydicom": "dicom",
    "libjpeg": "dicom",
    "openjpeg": "dicom",
    "shtab": "completion",
    "fastapi": "serve",
    "uvicorn": "serve",
    "httptools": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
}


def missing_package(error: BaseException | None) -> MissingPackageError | None:
    """The error to show if `error`, or one of its causes, is a missing package of an extra; else None."""
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
    """Turn a missing package inside the block into a MissingPackageError that names its extra."""
    try:
        yield
    except ImportError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        raise missing from error


def require(*packages: str) -> None:
    """Raise MissingPackageError unless the packages are installed; imports none of them."""
    with needs_extra():
        for package in packages:
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)
