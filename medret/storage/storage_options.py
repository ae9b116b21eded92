"""Options of the filesystems behind URIs, such as `anon=true`: given once per process, for a store and for all else.

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

from medret.errors import UsageError
from medret.storage.uris import hide, normalise_uri, redacted, scheme_of

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
        add_options({place: chosen for place in places if scheme_of(place) and chosen})


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
