"""Every error that medret raises on purpose, in one tree; and which extra a missing optional package belongs to.

    MedretError                 exit 1   something failed; the message says what, and what to do
    ├── UsageError              exit 2   wrong argument: the request must be changed
    │   ├── NotFoundError       exit 2   archive, store, snapshot, volume or file does not exist
    │   ├── MissingPackageError exit 2   an optional package is not installed
    │   └── WeightsError        exit 2   a model's weights are missing, or differ from the expected ones
    ├── VersionError            exit 2   written by another version of medret
    ├── GateError               exit 3   a check refused to publish; the old snapshot stays live
    ├── BusyError               exit 5   another run holds the store
    ├── CorruptError            exit 1   a file of the store is missing, or does not match its checksum
    ├── DroppedError            exit 1   the snapshot that was opened was removed; another one is live
    ├── StorageError            exit 1   a file or folder could not be read or written: permissions, full disk
    │   └── UnreachableError    exit 1   a server did not answer: network, address, credentials
    ├── StoppedError            exit 1   the run was told to stop; finished work is kept
    └── VolumeError             (a value, not an exit) one volume could not be used: a code and a reason

Exit code 4 (published, with volumes in quarantine) is an outcome, not an error.
StalledError and NotAFileError (medret.storage.objects) are OSErrors about one file, like those of the operating system;
the code that reads the file converts them to one of these. NotShownError (medret.html.cards) is the text that a page
shows in place of a volume's images. _UnwrittenError (medret.serve.guard) ends an answer that cannot be audited. A
ValueError is a mistake in the code that calls a function, not in a request.
A message names the object, what was found, what was expected and what to do.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from enum import StrEnum


class MedretError(Exception):
    """Base class of all errors that medret raises on purpose."""

    exit_code = 1


class UsageError(MedretError):
    """The request cannot be fulfilled; the user must change it."""

    exit_code = 2


class NotFoundError(UsageError):
    """Something that the request names does not exist."""


class MissingPackageError(UsageError):
    """The request needs a package that is not installed; the message names the extra to install."""


class WeightsError(UsageError):
    """A model's weights cannot be found, or differ from those in the recipe."""


class VersionError(MedretError):
    """A file is intact, but its format is unknown to this version of medret."""

    exit_code = 2


class GateError(MedretError):
    """A check before publication failed; nothing was published."""

    exit_code = 3


class BusyError(MedretError):
    """Another run holds the store."""

    exit_code = 5


class CorruptError(MedretError):
    """A file of the store is missing, does not match its checksum, or holds values that medret never writes."""


class DroppedError(MedretError):
    """The snapshot that was opened is not in the store any more: `gc` or `forget` removed it."""


class StorageError(MedretError):
    """A file or folder could not be read or written, for a reason outside medret."""


class UnreachableError(StorageError):
    """A server did not answer, because of the network, the address or the credentials."""


class StoppedError(MedretError):
    """The run was told to stop."""


class QuarantineCode(StrEnum):
    """Why a volume could not be used. Ledgers and reports hold these values: never rename one."""

    UNREADABLE = "unreadable"  # the object disappeared, or its bytes could not be read
    CHANGED_WHILE_READING = "changed_while_reading"  # it changed during every attempt to read it
    EMPTY = "empty"  # zero bytes
    NOT_NIFTI = "not_nifti"  # the first bytes are neither NIfTI-1/2, nor DICOM, nor a gzip, zip or tar of one
    GZIP_CORRUPT = "gzip_corrupt"  # the gzip stream is damaged (bad block, bad CRC)
    TRUNCATED = "truncated"  # fewer bytes than the header says
    HEADER_INVALID = "header_invalid"  # impossible dimensions, offset or spacing
    TOO_LARGE = "too_large"  # header or stream needs more than the limit
    DATATYPE_UNSUPPORTED = "datatype_unsupported"  # RGB, complex, unknown codes
    DIMENSIONS_UNSUPPORTED = "dimensions_unsupported"  # 2D, 5D and above
    TOO_SMALL = "too_small"  # too few voxels per slice for an image
    CONSTANT = "constant"  # every voxel has the same value
    NON_FINITE = "non_finite"  # more than the allowed share is NaN or infinite
    INSTANCE_DAMAGED = "instance_damaged"  # an instance of a DICOM series cannot be read; the reason names it
    INSTANCE_MISSING = "instance_missing"  # positions and instance numbers of a series skip the same slices
    NO_IMAGE = "no_image"  # reports, localizers, segmentations, ... but no image of a volume
    SYNTAX_UNSUPPORTED = "syntax_unsupported"  # pixels encoded in a way for which there is no decoder
    BUNDLE_CORRUPT = "bundle_corrupt"  # a damaged zip or tar
    LABEL_MASK = "label_mask"  # few distinct whole numbers in uniform regions, like a segmentation
    AFFINE_INVALID = "affine_invalid"  # singular or non-finite
    MIXED_SERIES = "mixed_series"  # the folder holds several DICOM series
    EMBEDDING_FAILED = "embedding_failed"  # the model gave NaN, infinity or zero vectors


class VolumeError(MedretError):
    """One volume cannot be used; it becomes a row of the quarantine table and is never lost."""

    def __init__(self, code: QuarantineCode, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[VolumeError], tuple[QuarantineCode, str]]:
        return type(self), (self.code, self.reason)


def first_line(error: object) -> str:
    """Return the first line of a library's error message; the error's type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
