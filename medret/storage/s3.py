"""S3 alone: conditional writes, so that one of several writers wins, and listing with several requests at a time.

Some S3 servers accept a conditional write and ignore its condition: every run would then get the lease. Each store is
therefore probed once: a write whose condition is not met must be refused. The result is kept in the store's object
`CONDITIONAL`, for the endpoint that was probed.

A request lists 1,000 keys, and the next one is known only when it is answered. So the keys are divided into ranges
that are listed side by side: whenever fewer than REQUESTS requests are under way, a range that has given some pages and
goes on is cut at common prefixes ("folders"). Each range drops keys that are not its own, so a server that answers with
other keys than it was asked for costs time and changes nothing.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from medret.errors import StorageError
from medret.storage.filesystems import Details, with_retries

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


REQUESTS = 16  # at a time
_PAGES = 4  # before the first cut: a small archive needs no more requests than it has pages
_PAGES_OF_PART = 16  # before a part is cut again
_FOLDER_PAGES = 10  # of common prefixes, for one cut


@dataclass(frozen=True)
class _Range:
    """The keys after `after` up to and including `until` (None: to the end).

    folder: where to look for common prefixes to cut the range at; None if there are none. token: of the next page.
    whole: how many more pages to give before it is cut. They count from the last page with nearly as many folders as
    keys: finding such small folders takes as many requests as listing them.
    """

    folder: str | None
    after: str = ""
    until: str | None = None
    token: str | None = None
    whole: int = _PAGES

    def has(self, key: str) -> bool:
        """Whether a key belongs to the range."""
        return key > self.after and (self.until is None or key <= self.until)


@dataclass(frozen=True)
class _Answer:
    """files: some files of a range. rest: the ranges that are left of it."""

    files: Details
    rest: tuple[_Range, ...] = ()


def s3_pages(fs: Any, root: str) -> Iterator[Details]:
    """The files below `root`, or that file itself, in pages in any order: s3fs's path of each -> its details.

    Raises FileNotFoundError if nothing is there, or whatever s3fs raises.
    """
    fs.invalidate_cache()
    bucket, key, _ = fs.split_path(root)
    prefix = f"{key}/" if key else ""
    listing = _Listing(fs, bucket, prefix)
    nothing = True
    with ThreadPoolExecutor(REQUESTS) as pool:
        waiting: deque[_Range] = deque([_Range(prefix)])
        running: set[Future[_Answer]] = set()
        while waiting or running:
            while waiting and len(running) < REQUESTS:
                running.add(pool.submit(listing.page, waiting.popleft()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for answer in (future.result() for future in done):
                if answer.files:
                    nothing = False
                    yield answer.files
                for left in answer.rest:
                    idle = len(waiting) + len(running) < REQUESTS
                    if idle and left.folder is not None and left.whole <= 0:
                        running.add(pool.submit(listing.cut, left))
                    else:
                        waiting.append(left)
    if nothing and key:
        yield {root: with_retries(lambda: fs.info(root))}


def is_folder(path: str, size_bytes: int | None) -> bool:
    """Whether an object only makes a folder show in the console of S3: it is empty, and its key ends with a slash."""
    return path.endswith("/") and not size_bytes


@dataclass(frozen=True)
class _Listing:
    """Requests for the keys below a prefix. They may be made by several threads."""

    fs: Any
    bucket: str
    prefix: str

    def page(self, keys: _Range) -> _Answer:
        """The next page of a range."""
        answer = self._request(self.prefix, keys.after, keys.token)
        found = answer.get("Contents", [])
        files = {}
        folders = set()
        for entry in found:
            folders.add(_folder_below(keys.folder or "", entry["Key"]))
            if keys.has(entry["Key"]):
                path = f"{self.bucket}/{entry['Key']}"
                files[path] = {**entry, "name": path, "size": entry["Size"], "type": "file"}
        last = found[-1]["Key"] if found else keys.after
        if not answer.get("IsTruncated") or (keys.until is not None and last >= keys.until):
            return _Answer(files)
        whole = keys.whole - 1 if 2 * len(folders) <= len(found) else _PAGES
        rest = replace(keys, after=max(last, keys.after), token=answer["NextContinuationToken"], whole=whole)
        return _Answer(files, (rest,))

    def cut(self, keys: _Range) -> _Answer:
        """Cut a range at the common prefixes of its folder or, if it has no more of them, of the folders below it."""
        keys = replace(keys, whole=_PAGES_OF_PART)
        folder = keys.folder
        while folder is not None:
            prefixes = self._common_prefixes(folder, keys.after)
            found = [prefix for prefix in prefixes if keys.has(prefix) and prefix != keys.until]
            if found:
                cuts = found[:: math.ceil(len(found) / REQUESTS)]
                ends: list[str | None] = [*cuts[1:], keys.until]
                others = [
                    _Range(folder, start, end, whole=_PAGES_OF_PART) for start, end in zip(cuts, ends, strict=True)
                ]
                return _Answer({}, (replace(keys, folder=folder, until=cuts[0]), *others))
            folder = _folder_below(folder, keys.after)
        return _Answer({}, (replace(keys, folder=None),))

    def _common_prefixes(self, folder: str, after: str) -> list[str]:
        """The first common prefixes of a folder after a key, sorted."""
        prefixes: list[str] = []
        token = None
        for _ in range(_FOLDER_PAGES):
            answer = self._request(folder, after, token, Delimiter="/")
            more = [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
            prefixes += more
            token = answer.get("NextContinuationToken")
            if not (more and answer.get("IsTruncated")):
                break
        return sorted(set(prefixes))

    def _request(self, prefix: str, after: str, token: str | None, **more: str) -> dict[str, Any]:
        where = {"ContinuationToken": token} if token else {"StartAfter": after} if after else {}
        request = {"Bucket": self.bucket, "Prefix": prefix, **where, **more, **self.fs.req_kw}
        answer: dict[str, Any] = with_retries(lambda: self.fs.call_s3("list_objects_v2", **request))
        return answer


def _folder_below(folder: str, key: str) -> str | None:
    """The folder in `folder` that holds the key; None if the key lies in `folder` itself, or elsewhere."""
    name, slash, _ = key.removeprefix(folder).partition("/")
    return f"{folder}{name}/" if key.startswith(folder) and slash else None
