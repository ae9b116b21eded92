"""Conditional writes to S3: an object is written only if it is as expected, so one of several writers wins.

Some S3 servers accept a conditional write and ignore its condition: every run would then get the lease. Each store is
therefore probed once: a write whose condition is not met must be refused. The result is kept in the store's object
`CONDITIONAL`, for the endpoint that was probed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from medret.errors import StorageError
from medret.storage.filesystems import with_retries

CONDITIONAL = "CONDITIONAL"
_FAILED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_NO_TAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class S3Store:
    """Objects below a root in S3. fs: s3fs's filesystem. root: bucket and prefix. uri: for messages."""

    fs: Any
    root: str
    uri: str

    def compare_and_swap(self, relative: str, expected: bytes | None, new: bytes) -> bool:
        """Write an object only if it still holds `expected` (None: does not exist); return whether it was written."""
        self.check()
        condition: dict[str, str] = {"IfNoneMatch": "*"}
        if expected is not None:
            try:
                # Get the tag before the bytes: if they change in between, the condition fails.
                self.fs.invalidate_cache()
                tag = with_retries(lambda: self.fs.info(f"{self.root}/{relative}", refresh=True))["ETag"]
            except FileNotFoundError:
                return False
            condition = {"IfMatch": tag}
        if self._read_or_none(relative) != expected:
            return False
        if not self._put(relative, new, condition):
            # The first attempt of a retried request may have written after all.
            return self._read_or_none(relative) == new
        self.fs.invalidate_cache()
        return True

    def check(self) -> None:
        """Raise StorageError if the endpoint writes although a condition is not met."""
        answer = self._answer()
        if self._read_or_none(CONDITIONAL) == answer:
            return
        with_retries(lambda: self.fs.pipe_file(f"{self.root}/{CONDITIONAL}", answer))
        ignored = [
            name
            for name, condition in (("If-None-Match", {"IfNoneMatch": "*"}), ("If-Match", {"IfMatch": _NO_TAG}))
            if self._put(CONDITIONAL, answer, condition)
        ]
        if not ignored:
            return
        with_retries(lambda: self.fs.rm_file(f"{self.root}/{CONDITIONAL}"))
        raise StorageError(
            f"{self.uri}: the server ignores {' and '.join(ignored)} when writing, so two runs could publish at once "
            "and undo each other's work; use a server that honours conditional writes, or a folder on disk"
        )

    def _answer(self) -> bytes:
        """What the probe leaves behind. It names the endpoint: a store copied to another one is probed again there."""
        endpoint = self.fs.s3.meta.endpoint_url
        return json.dumps({"endpoint": endpoint, "root": self.root, "honours": ["If-None-Match", "If-Match"]}).encode()

    def _put(self, relative: str, data: bytes, condition: dict[str, str]) -> bool:
        """Write the object; False if the condition was not met."""
        bucket, key, _ = self.fs.split_path(f"{self.root}/{relative}")
        try:
            with_retries(lambda: self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition))
        except OSError as error:
            response = getattr(error.__cause__, "response", None) or {}
            if str(response.get("Error", {}).get("Code")) not in _FAILED:
                raise
            return False
        return True

    def _read_or_none(self, relative: str) -> bytes | None:
        try:
            data: bytes = with_retries(lambda: self.fs.cat_file(f"{self.root}/{relative}"))
        except FileNotFoundError:
            return None
        return data
