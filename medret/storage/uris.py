"""URIs and paths as text: the scheme, secrets to redact, and whether a path stays below a root.

A URI is used literally and names one place. It is not a pattern (`*`, `?` and `[` are letters of a name) and not a
chain of filesystems (`zip://a.nii::s3://...`), so every name that a store can hold can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from medret.errors import CorruptError, UsageError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")  # two letters at least: one is a Windows drive
LOCAL_SCHEMES = ("file", "local")
# fsspec's filesystems that show the content of another one.
WRAPPING = frozenset(
    {"blockcache", "cached", "dir", "filecache", "generic", "libarchive", "reference", "simplecache", "tar", "zip"}
)

HIDDEN_LETTERS = 6  # of a secret at least: a shorter text may be part of any word
_hidden: set[str] = set()  # secrets that were given to this process

# user:password@, also if the password contains a slash; a port is not a password.
_PASSWORD = re.compile(r"(://)[^\s/@:\[]*:(?!\d+(?:[/\s?#]|$))(?:[^\s/@]*(?:@[^\s/@]*)*@|[^\s@]*@)")
_WEB_USER = re.compile(r"(https?://)[^\s/@]+@", re.IGNORECASE)  # a token alone
_QUERY_SECRET = re.compile(
    r"([?&](?:sig|[^=&\s?]*(?:signature|token|secret|passw|credential|api_?-?key|access_?-?key)[^=&\s?]*)=)[^&\s#'\"]+",
    re.IGNORECASE,
)


def scheme_of(uri: str) -> str:
    """The scheme of a URI, such as `s3`; "" for a local path."""
    scheme, mark, _ = uri.partition("://")
    if mark and _SCHEME.fullmatch(scheme):
        return "" if scheme in LOCAL_SCHEMES else scheme
    scheme, mark, _ = uri.partition("::")
    return scheme if mark and scheme in WRAPPING else ""


def normalise_uri(uri: str | os.PathLike[str]) -> str:
    """An absolute path for a local place, else the URI without a trailing slash; raises UsageError."""
    text = os.fspath(uri)
    if not text:
        raise UsageError("an empty path was given where a folder or URI is expected")
    if "\0" in text or not is_text(text):
        raise UsageError(f"path {escaped(text)} is not UTF-8 text; rename it, or pass a link to it whose name is")
    scheme = scheme_of(text)
    if scheme in WRAPPING:
        raise UsageError(
            f"{redacted(text)}: medret does not read a {scheme}: filesystem inside another; unpack it, or pass the "
            "place itself"
        )
    if scheme:
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(plain_path(text)))


def plain_path(uri: str) -> str:
    """A local path without a leading `file://`."""
    for scheme in LOCAL_SCHEMES:
        uri = uri.removeprefix(f"{scheme}://")
    return uri


def is_text(name: str) -> bool:
    """Whether a name is UTF-8. On disk it need not be; Python then shows its bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(name: str) -> str:
    r"""Any name as readable text: `caf\xe9.nii`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\0", r"\x00")


def hide(secrets: Iterable[str]) -> None:
    """Hide these texts in everything that `redacted` returns from now on."""
    _hidden.update(secret for secret in secrets if len(secret) >= HIDDEN_LETTERS)


def redacted(text: str) -> str:
    """The text with `***` in place of passwords, of secrets in the queries of URIs, and of those given to `hide`."""
    text = _without_credentials(text)
    for secret in _hidden:
        text = text.replace(secret, "***")
    return text


def _without_credentials(text: str) -> str:
    text = _PASSWORD.sub(r"\1***@", text)
    return _QUERY_SECRET.sub(r"\1***", _WEB_USER.sub(r"\1***@", text))


def refuse_secrets(uri: str, what: str) -> None:
    """Raise UsageError if a URI carries a credential, which the store would record. what: names the URI, in words."""
    if _without_credentials(uri) == uri:
        return
    scheme = scheme_of(uri)
    how = "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if scheme in ("s3", "s3a") else ""
    how = how or f"FSSPEC_{scheme.upper()}_USERNAME and FSSPEC_{scheme.upper()}_PASSWORD, or the library's own profile"
    raise UsageError(
        f"{what} {redacted(uri)} carries a credential, which the store would record for others to read; set it in the "
        f"environment instead ({how}), or give it with --storage-option"
    )


def check_relative(relative: str) -> str:
    """Return the path if it stays below its location, else raise CorruptError: medret never writes such a path."""
    if relative and (not is_text(relative) or {"", ".", ".."} & set(relative.split("/")) or "\0" in relative):
        raise CorruptError(
            f"path {escaped(relative)!r} does not name a file below its store: it is damaged, or was forged to lead "
            "elsewhere"
        )
    return relative
