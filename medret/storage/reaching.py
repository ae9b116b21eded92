"""Filesystems behind URIs, opened so that they repeat what fails for a moment, and their failures in medret's words.

    what happened                                                          error                exit
    an unknown scheme, a filesystem within another                         UsageError           2
    a library that is not installed                                        MissingPackageError  2
    a place elsewhere does not answer, or refuses                          UnreachableError     1
    a place of this machine cannot be read or written                      StorageError         1

That an object is not there stays a FileNotFoundError: what it means depends on who asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medret.errors import MedretError, MissingPackageError, StorageError, UnreachableError, UsageError
from medret.extras import missing_package
from medret.retry import options_of
from medret.storage.uris import redacted, scheme_of

_OF_STORES = (OSError, ValueError, EOFError, NotImplementedError)


def is_store_failure(error: Exception) -> bool:
    """True for what lies outside the program: the system's errors, and any that a library has defined for itself."""
    if isinstance(error, MedretError):
        return False
    return isinstance(error, _OF_STORES) or type(error).__module__ != "builtins"


def in_words(error: BaseException) -> str:
    """An error of another library as one line, without the secrets of URIs in it."""
    return redacted(" ".join(str(error).split()) or type(error).__name__)


@contextmanager
def reaching(uri: str, verb: str) -> Iterator[None]:
    """Turn failures of a store, whatever its library calls them, into StorageError; FileNotFoundError stays."""
    try:
        yield
    except FileNotFoundError as error:
        if not _was_unreachable(error):
            raise
        raise _unreachable(uri, verb, error.__cause__ or error) from error
    except IsADirectoryError as error:
        raise UsageError(f"{uri} is a folder, expected a file") from error
    except Exception as error:
        if not is_store_failure(error):
            raise
        if scheme_of(uri):
            raise _unreachable(uri, verb, error) from error
        raise StorageError(
            f"{uri} cannot be {verb}: {in_words(error)}; check the path, the permissions and the free space"
        ) from error


def _was_unreachable(error: FileNotFoundError) -> bool:
    """Whether a library only calls it so (fsspec's HTTP does): nobody answered, or the connection broke."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)


def _unreachable(uri: str, verb: str, error: BaseException) -> UnreachableError:
    cure = "check the address, the credentials and the network"
    return UnreachableError(f"{redacted(uri)} cannot be {verb}: {in_words(error)}; {cure}")


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI, and the filesystem's own path. uri: as it stands, see `uris`.

    Raises UsageError, MissingPackageError, UnreachableError.
    """
    import fsspec

    scheme = scheme_of(uri)
    try:
        kind = fsspec.get_filesystem_class(scheme or "file")
        options = dict(options_of(scheme))
    except ImportError as error:
        needed = MissingPackageError(f"{redacted(uri)} needs a library that is not installed: {in_words(error)}")
        raise missing_package(error) or needed from error
    except ValueError as error:
        raise UsageError(f"{redacted(uri)}: {scheme}:// is no kind of place that is known") from error
    options |= kind._get_kwargs_from_urls(uri)  # noqa: SLF001  # such as the host
    with reaching(uri, "opened"):
        return fsspec.filesystem(scheme or "file", **options), str(kind._strip_protocol(uri))
