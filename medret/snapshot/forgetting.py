"""FORGETTING: what is to be forgotten, written down before anything is done, so that whoever comes next can finish it.

    {"volumes": ["<sha256 of a volume's id>"], "snapshots": {"<old id>": "<new id>"}, "doomed": ["<path>"], ...}

The ids themselves are not in it. At first it holds the volumes alone: new files are being written, and nothing is
deleted, so every table still tells which volumes they are. Once all new files lie in the store it says what they
replace; from then on finishing needs no id.
"""

from __future__ import annotations

import hashlib

import msgspec

from medret.errors import CorruptError
from medret.storage import Location

FORGETTING = "FORGETTING"


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What FORGETTING says.

    volumes: sha256 of each id. doomed: files to delete, in that order; None while new files are being written.
    snapshots: old id -> new id. unreadable: files and snapshots erased whole, because nobody can tell what they hold.
    left: files that name a volume and are not medret's to change.
    """

    volumes: tuple[str, ...]
    doomed: tuple[str, ...] | None = None
    snapshots: dict[str, str] = {}
    unreadable: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def digest(volume_id: str) -> str:
    """What stands for an id in the note."""
    return hashlib.sha256(volume_id.encode("utf-8", "surrogateescape")).hexdigest()


def read_note(store: Location) -> Note | None:
    """What an unfinished `forget` left; None if there is none. Raises CorruptError if it cannot be understood."""
    try:
        return msgspec.json.decode(store.read(FORGETTING), type=Note)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(
            f"{store.uri_of(FORGETTING)} is damaged ({error}): a `medret forget` was not finished, and for which "
            "volumes cannot be told; delete the file and run it again for them"
        ) from error


def write_note(store: Location, note: Note) -> None:
    """Write it down; the one that was there is replaced."""
    store.write(FORGETTING, msgspec.json.encode(note) + b"\n")
