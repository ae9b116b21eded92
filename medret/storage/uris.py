"""URIs and paths as text, the secrets in them, and the options of the filesystems behind them.

A URI is used literally and names one place. It is not a pattern (`*`, `?` and `[` are letters of a name) and not a
chain of filesystems (`zip://a.nii::s3://...`), so every name that a store can hold can be read.

Options, such as `anon=true`, are given once per process, for a store and for all else:

    KEY=VALUE               for every place: the archive, the store, labels, queries
    archive.KEY=VALUE       for every place but the store
    store.KEY=VALUE         for the store alone
    client_kwargs.KEY=VALUE a key of an option that is a mapping itself

A value is JSON if it can be read as that (true, 16, {"a": 1}), else text; credentials are always text. The options of a
store hold below its URI, those of other places in their whole bucket or on their whole server. They travel to other
processes with `given_options`, and are never written down: `redacted` hides the credentials among them.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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

Options = Mapping[str, Any]
ROLES = ("archive", "store")
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_CREDENTIAL = re.compile(
    r"(.*[._])?(\w*(key|secret|token|passw(or)?d|credentials?|connection_string)|username)", re.IGNORECASE
)
_OURS = frozenset({"self", "asynchronous", "loop", "session", "get_client"})
# What the libraries take besides the parameters of their filesystems.
_MORE = {
    "s3": ("profile",),
    "s3a": ("profile",),
    "http": ("auth", "cookies", "headers", "params", "proxy", "ssl", "timeout"),
    "https": ("auth", "cookies", "headers", "params", "proxy", "ssl", "timeout"),
}

_given: dict[str, dict[str, Any]] = {}  # start of URIs -> the options there


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
    if not (text.partition("://")[2].strip("/") if scheme else plain_path(text)):
        raise UsageError(f"{text} names no place: is a variable empty?")
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


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as nested options; raises UsageError."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            shown = key if equals else text  # a value may be a secret
            raise UsageError(f"--storage-option '{shown}' is not of the form KEY=VALUE, such as anon=true")
        _put(options, names, _value(key, value), key)
    return options


def _put(options: dict[str, Any], names: Sequence[str], value: Any, key: str) -> None:
    *above, last = names
    for name in above:
        options = options.setdefault(name, {})
        if not isinstance(options, dict):
            raise UsageError(f"--storage-option {key}: another one gives '{name}' a plain value; give one of them")
    if last in options and options[last] != value:
        raise UsageError(f"--storage-option gives {key} twice, with two values; give it once")
    options[last] = value


def _value(key: str, text: str) -> Any:
    if _CREDENTIAL.fullmatch(key) and not text.startswith("{"):
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def use_options(
    options: Options, *, stores: Iterable[str | os.PathLike[str]] = (), others: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Use these options from now on for these places. Local ones need none. Raises UsageError for no mapping."""
    _check_mapping(options)
    for given in (options.get(role, {}) for role in ROLES):
        _check_mapping(given)
    hide(_credentials(options))
    common = {name: value for name, value in options.items() if name not in ROLES}
    for role, places in (("archive", map(_server, others)), ("store", map(normalise_uri, stores))):
        chosen = _merged(common, options.get(role, {}))
        # A place without options of its own is noted too: those of its bucket would hold for it otherwise.
        add_options({place: chosen for place in places if scheme_of(place) and options})


def _check_mapping(options: object) -> None:
    if not isinstance(options, Mapping):
        raise UsageError('storage options are not a mapping from names to values, such as {"anon": True}')


def given_options() -> dict[str, dict[str, Any]]:
    """All options that are in use, for `add_options` in another process."""
    return dict(_given)


def add_options(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Use the options that `given_options` returned, perhaps in another process."""
    for place, options in given.items():
        _given[place] = _merged(_given.get(place, {}), options)
        hide(_credentials(options))


def options_at(uri: str) -> dict[str, Any]:
    """The options for a URI: those given for the longest start of it."""
    fitting = [place for place in _given if uri == place or uri.startswith(f"{place.rstrip('/')}/")]
    return copy.deepcopy(_given[max(fitting, key=len)]) if fitting else {}


def check_names(uri: str, options: Options, filesystem: type) -> None:
    """Raise UsageError for an option that the filesystem of a URI does not have."""
    scheme = scheme_of(uri)
    known = {*inspect.signature(filesystem.__init__).parameters, *_MORE.get(scheme, ())}  # type: ignore[misc]
    known -= {*_OURS, "args", "kwargs", "storage_options"}
    if unknown := sorted(options.keys() - known):
        raise UsageError(
            f"{redacted(uri)}: {scheme}:// has no storage option '{unknown[0]}'; it has {', '.join(sorted(known))}. "
            "For the archive or the store alone, write archive.KEY=VALUE or store.KEY=VALUE"
        )


def _server(place: str | os.PathLike[str]) -> str:
    """The bucket or server of a URI; "" for a local path."""
    uri = normalise_uri(place)
    scheme = scheme_of(uri)
    return f"{scheme}://{uri.partition('://')[2].partition('/')[0]}" if scheme else ""


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, also where they are nested; the other one wins."""
    merged = dict(one)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _credentials(options: Options) -> set[str]:
    """The texts among the options that no message may show."""
    found: set[str] = set()
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= _credentials(value)
        elif isinstance(value, str) and _CREDENTIAL.fullmatch(name):
            found.add(value)
    return found
