"""The file of tokens: who may ask, what each may see, and until when. Read again whenever it changes.

[[token]]
name = "ward 3"
sha256 = "..."              # of the token; `medret serve --make-token NAME` prints both
where = "site = 'A'"        # optional: the volumes that it may see
expires = 2027-01-01        # optional: a day or a time, UTC if it names no zone; the token is valid before it
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
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medret.errors import UsageError, first_line
from medret.serve.access import Caller
from medret.serve.refusals import Refused
from medret.visible import visible

LOGGER = logging.getLogger(__name__)
FILE_BYTES = 16 << 20
PREFIX = "medret_"  # by which scanners for leaked secrets know a token
SCHEME = "bearer"


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
