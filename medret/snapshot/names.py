"""The names that files of a store have: what has another name is not medret's, is never read and never deleted.

Every kind of file that medret writes has its line in `OWN`. docs/formats.md describes them in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from medret.storage import NAME_DIGITS, Location

DIGEST = rf"[0-9a-f]{{{NAME_DIGITS}}}"
RUN = r"\d{8}T\d{6}Z"  # the moment of its start
SNAPSHOT = rf"snapshots/{RUN}-{DIGEST}"
SHA256 = re.compile(r"[0-9a-f]{64}")
TABLE_NAME = re.compile(rf"(files|ledger|tombstones)-{DIGEST}\.parquet")  # in a snapshot's folder

# Kind of file -> its path below the store. A digest before the suffix is that of the content.
OWN = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "current": "CURRENT",
        "lease": "LEASE",
        "forgetting": "FORGETTING",
        "manifest": rf"{SNAPSHOT}/manifest\.json",
        "table": rf"{SNAPSHOT}/{TABLE_NAME.pattern}",
        "embeddings": rf"embeddings/{DIGEST}/(slices|volumes)-{DIGEST}\.parquet",
        "index": rf"indices/{DIGEST}/((hnsw|lsh|exact)-{DIGEST}\.faiss|rows-{DIGEST}\.arrow)",
        "centre": rf"indices/centres/centre-{DIGEST}\.npy",
        "quarantine": rf"quarantine/{RUN}-{DIGEST}\.parquet",
        "report": rf"runs/{RUN}-{DIGEST}\.json",
        "journal": rf"journal/({DIGEST}|quarantine)-{DIGEST}\.parquet",
    }.items()
}
SINGLE = frozenset({"current", "lease", "forgetting"})  # beside the folders; replaced, so named after no content
TEMPORARY = re.compile(r"(?P<folder>(?:.*/)?)\.(?P<name>[^/]+)\.[0-9a-f]{8}\.tmp")
# What desktops, NAS boxes and network filesystems leave in folders.
LITTER = re.compile(r"(.*/)?(\.DS_Store|\._[^/]*|\.nfs[0-9a-f]+|Thumbs\.db|desktop\.ini|@eaDir/.+|@eaDir@.*)")


def kind_of(path: str) -> str | None:
    """The kind of a file of medret; None for any other file, temporaries and litter too."""
    return next((kind for kind, pattern in OWN.items() if pattern.fullmatch(path)), None)


def is_temporary(path: str) -> bool:
    """Whether it is what a writer of a file of medret leaves when it is killed in the middle."""
    match = TEMPORARY.fullmatch(path)
    return match is not None and kind_of(match["folder"] + match["name"]) is not None


def is_litter(path: str) -> bool:
    """Whether it is what desktops and file servers leave in any folder."""
    return LITTER.fullmatch(path) is not None


def strangers(paths: Iterable[str]) -> list[str]:
    """The files that are neither medret's nor litter."""
    return [path for path in paths if kind_of(path) is None and not is_temporary(path) and not is_litter(path)]


def own(paths: Iterable[str], *kinds: str) -> list[str]:
    """The files of these kinds."""
    return [path for path in paths if kind_of(path) in kinds]


def say_strangers(store: Location, say: Callable[[str], None]) -> None:
    """Of a folder that becomes a store: say which files there are not medret's."""
    found = strangers(store.files())
    if found:
        say(
            f"{store.uri} holds {len(found)} files that are not medret's, such as {found[0]}; they stay as they are, "
            "and `medret verify` will name them: a folder of its own is better for a store"
        )
