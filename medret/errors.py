"""Every error that medret raises on purpose, in one tree.

    MedretError                 exit 1   something failed; the message says what, and what to do
    ├── UsageError              exit 2   wrong argument: the request cannot be met as it was made
    │   ├── NotFoundError       exit 2   what the request names is not there: archive, store, snapshot, volume, file
    │   ├── MissingPackageError exit 2   an optional package is not installed
    │   └── WeightsError        exit 2   a model's weights are missing, or are not the expected ones
    ├── VersionError            exit 2   written by another version of medret
    ├── GateError               exit 3   a check refused to publish; the old snapshot stays live
    ├── BusyError               exit 5   another run holds the store
    ├── CorruptError            exit 1   damaged: a file of the store is not what its checksum says, or is missing
    ├── DroppedError            exit 1   the snapshot that is read was removed from its store; another one is live
    ├── StorageError            exit 1   a place could not be read or written: permissions, a full disk
    │   └── UnreachableError    exit 1   a place could not be reached: network, credentials
    ├── StoppedError            exit 1   the run was told to stop; finished work is kept
    └── VolumeError             (a value, not an exit) one volume could not be used: a code and a reason

Exit code 4 (published, with volumes in quarantine) is an outcome, not an error.
StalledError and NotAFileError (medret.storage.objects) are OSErrors about one file, as the system would raise them;
whoever reads a place turns them into one of these. A ValueError is a mistake in a call of a function, not in a request.
A message names the object, what was found, what was expected and what to do.
"""

from __future__ import annotations

from enum import StrEnum


class MedretError(Exception):
    """Base of all errors that a user of medret can foresee."""

    exit_code = 1


class UsageError(MedretError):
    """The request cannot be met as it was made."""

    exit_code = 2


class NotFoundError(UsageError):
    """What the request names is not there."""


class MissingPackageError(UsageError):
    """The request needs a package that is not installed; the message says which extra brings it."""


class WeightsError(UsageError):
    """A model's weights cannot be found, or are not what the recipe names."""


class VersionError(MedretError):
    """A file is whole, but of a format that this version of medret does not know."""

    exit_code = 2


class GateError(MedretError):
    """A check before publication failed; nothing was published."""

    exit_code = 3


class BusyError(MedretError):
    """Another run holds the store."""

    exit_code = 5


class CorruptError(MedretError):
    """A file of the store does not match its checksum, is missing, or holds what medret never writes."""


class DroppedError(MedretError):
    """The snapshot that was opened is no longer in the store: `gc` or `forget` removed it."""


class StorageError(MedretError):
    """A place could not be read or written, for a reason that lies outside medret."""


class UnreachableError(StorageError):
    """A place did not answer: the network, the address or the credentials."""


class StoppedError(MedretError):
    """The run was told to stop."""


class QuarantineCode(StrEnum):
    """Why a volume could not be used. The values stand in ledgers and reports: never rename one."""

    UNREADABLE = "unreadable"  # the object vanished, or the store refused to give its bytes
    CHANGED_WHILE_READING = "changed_while_reading"  # written to, again and again, while it was read
    EMPTY = "empty"  # zero bytes
    NOT_NIFTI = "not_nifti"  # the first bytes are neither NIfTI-1/2 nor gzip of one
    GZIP_CORRUPT = "gzip_corrupt"  # the gzip stream is damaged (bad block, bad CRC)
    TRUNCATED = "truncated"  # fewer bytes than the header promises
    HEADER_INVALID = "header_invalid"  # dimensions, offset or spacing that cannot be
    TOO_LARGE = "too_large"  # header or stream asks for more than the limit
    DATATYPE_UNSUPPORTED = "datatype_unsupported"  # RGB, complex, unknown codes
    DIMENSIONS_UNSUPPORTED = "dimensions_unsupported"  # 2D, 5D and above
    TOO_SMALL = "too_small"  # too few voxels in a slice to be an image
    CONSTANT = "constant"  # every voxel has the same value
    NON_FINITE = "non_finite"  # more than the allowed share is NaN or infinite
    LABEL_MASK = "label_mask"  # a few whole numbers in pieces of one value, as in a segmentation
    AFFINE_INVALID = "affine_invalid"  # singular or non-finite
    EMBEDDING_FAILED = "embedding_failed"  # the model gave NaN, infinity or zero vectors


class VolumeError(MedretError):
    """One volume cannot be used; it becomes a quarantine row, never a lost volume."""

    def __init__(self, code: QuarantineCode, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[VolumeError], tuple[QuarantineCode, str]]:
        return type(self), (self.code, self.reason)


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
