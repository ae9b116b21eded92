"""Who asks and what each may see: callers, the file of tokens, the record of a request, and the audit log.

The file of tokens is read again whenever it changes:

    [[token]]
    name = "ward 3"
    sha256 = "..."              # of the token; `medret serve --make-token NAME` prints both
    where = "site = 'A'"        # optional: the volumes that it may see
    expires = 2027-01-01        # optional: a day or a time, UTC if it names no zone; the token is valid before it

What cannot be written to the audit log is not answered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medret.errors import UsageError, first_line
from medret.serve.messages import Refused
from medret.visible import visible

LOGGER = logging.getLogger(__name__)
FILE_BYTES = 16 << 20
PREFIX = "medret_"  # by which scanners for leaked secrets know a token
SCHEME = "bearer"


@dataclass(frozen=True)
class Caller:
    """Who asks. where: the filter that every answer is restricted to; None: all volumes."""

    name: str
    where: str | None = None


LOCAL = Caller("local")


@dataclass
class Record:
    """One request. asked: its options. uploads: sha256 of uploaded volumes. shown: volume_ids. seconds: by stage."""

    asked: dict[str, Any] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def caller_of(request: Request) -> Caller:
    """The caller of a request, as the guard found it."""
    caller: Caller = getattr(request.state, "caller", LOCAL)
    return caller


def record_of(request: Request) -> Record:
    """The record of a request."""
    record: Record | None = getattr(request.state, "record", None)
    if record is None:
        record = request.state.record = Record()
    return record


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    where: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    expires: datetime | date | None = None


@dataclass(frozen=True)
class Token:
    """One token of a file. expires: None: never."""

    caller: Caller
    sha256: str
    expires: datetime | None


class Tokens:
    """The tokens of a file; raises UsageError, which names the entry, if the file cannot be used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._identity, self._tokens = _read(self._path)
        self._problem = False

    @property
    def callers(self) -> list[Caller]:
        """The callers that have a token."""
        return [token.caller for token in self._tokens]

    def caller(self, authorization: str | None, now: datetime | None = None) -> Caller:
        """Who sends this Authorization header; raises Refused."""
        self._refresh()
        scheme, _, sent = (authorization or "").partition(" ")
        if scheme.lower() != SCHEME or not sent.strip():
            raise Refused(401, "token_missing", "send a token: Authorization: Bearer TOKEN")
        digest = hashlib.sha256(sent.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for token in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token.sha256, digest):
                found = token
        if found is None:
            raise Refused(401, "token_unknown", "this token is not known")
        if found.expires is not None and (now or datetime.now(UTC)) >= found.expires:
            raise Refused(401, "token_expired", f"this token expired at {found.expires.isoformat()}")
        return found.caller

    def _refresh(self) -> None:
        """Read the file again if it was changed. While it cannot be used, nobody is let in."""
        try:
            identity = _identity(self._path.stat())
            if identity != self._identity:
                self._identity, self._tokens = _read(self._path)
                LOGGER.info("read %d tokens from %s", len(self._tokens), self._path)
            self._problem = False
        except (OSError, UsageError) as error:
            self._identity = None
            if not self._problem:
                LOGGER.error("no token is accepted: %s", visible(str(error)))
            self._problem = True
            reason = "the tokens of this server cannot be read at the moment"
            raise Refused(503, "no_tokens", reason, retry_after=10) from error


def make_token(name: str) -> tuple[str, str]:
    """A new token, and its entry for the file of tokens. Raises UsageError for a name that cannot be shown."""
    if not name or len(name) > 200 or visible(name) != name:
        raise UsageError(f"name of a token is {visible(name[:200])!r}, expected 1 to 200 characters that can be shown")
    token = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    return token, f'[[token]]\nname = {json.dumps(name, ensure_ascii=False)}\nsha256 = "{digest}"\n'


def _identity(status: os.stat_result) -> tuple[int, ...] | None:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> tuple[tuple[int, ...] | None, Sequence[Token]]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"token file {path} cannot be read: {error.strerror or error}") from error
    if status.st_mode & stat.S_IWOTH:
        raise UsageError(f"token file {path} may be written by everyone, who could let themselves in: chmod o-w {path}")
    if len(data) > FILE_BYTES:
        raise UsageError(f"token file {path} is larger than {FILE_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"token file {path}: {first_line(error)}") from error
    if unknown := sorted(document.keys() - {"token"}):
        raise UsageError(f"token file {path}: there is '{visible(unknown[0])}', expected only [[token]] entries")
    entries = document.get("token", [])
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"token file {path} has no [[token]] entry: nobody could ask")
    tokens = [_token(path, number, entry) for number, entry in enumerate(entries, 1)]
    for what, values in (("name", [token.caller.name for token in tokens]), ("sha256", [t.sha256 for t in tokens])):
        for number, value in enumerate(values, 1):
            if value in values[: number - 1]:
                first = values.index(value) + 1
                raise UsageError(f"token file {path}: entries {first} and {number} have the same {what}")
    return _identity(status), tokens


def _token(path: Path, number: int, entry: Any) -> Token:
    name = entry.get("name") if isinstance(entry, dict) else None
    which = f"token file {path}: entry {number}" + (f" ({visible(name)})" if isinstance(name, str) else "")
    try:
        checked = _Entry.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"][:1])
        raise UsageError(f"{which}: {visible(at)}: {first['msg']}") from error
    expires = checked.expires
    if isinstance(expires, date) and not isinstance(expires, datetime):
        expires = datetime.combine(expires, time.min)
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return Token(Caller(checked.name, checked.where), checked.sha256, expires)


class AuditLog:
    """A file that lines are appended to; another takes its place when it was moved away. Raises UsageError.

    Several processes may append to one file: each line is one write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._is_torn = False  # whether the last line has no end
        try:
            self._file = self._open()
        except OSError as error:
            raise UsageError(f"audit log {path} cannot be written: {error.strerror or error}") from error

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; raises OSError."""
        self._follow()
        text = json.dumps(line, separators=(",", ":"))  # in ASCII: no reader sees a line end within it
        data = b"\n" * self._is_torn + text.encode() + b"\n"
        written = os.write(self._file, data)
        self._is_torn = 0 < written < len(data)
        if written < len(data):
            raise OSError(f"{self._path}: only {written} of {len(data)} bytes were written")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _follow(self) -> None:
        """Open the file again if its name is another's, as after a rotation."""
        here = os.fstat(self._file)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            named = None
        if named is None or (named.st_dev, named.st_ino) != (here.st_dev, here.st_ino):
            replaced = self._open()
            os.close(self._file)
            self._file = replaced
