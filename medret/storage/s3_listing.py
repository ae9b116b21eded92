"""List a prefix of an S3 bucket with several requests at a time.

A request gives 1,000 keys, and the next one is known only when it is answered. So the keys are divided into ranges
that are listed side by side: whenever fewer than REQUESTS requests are under way, a range that has given some pages and
goes on is cut at common prefixes ("folders"). Each range drops keys that are not its own, so a server that answers with
other keys than it was asked for costs time and changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from medret.storage.filesystems import Details, with_retries

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
