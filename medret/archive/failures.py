"""Which exceptions mean that a store did not answer, whatever its library calls them."""

from __future__ import annotations

# Missing credentials and unreachable endpoints come as these libraries' own exceptions, which are no OSErrors.
_STORE_LIBRARIES = frozenset({"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure"})


def is_store_failure(error: Exception) -> bool:
    """True for what a user can put right (path, access, network), False for a fault of the program."""
    return isinstance(error, OSError | ValueError) or type(error).__module__.partition(".")[0] in _STORE_LIBRARIES
