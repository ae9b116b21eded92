"""Listing S3 with several requests at a time gives what one request after the other gives, whatever lies there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medret.archive import list_archive
from medret.errors import NotFoundError
from medret.storage import Location, s3_listing
from medret.storage.filesystems import _moment
from medret.storage.s3_listing import s3_pages
from tests.failing_s3 import FailingProxy

PAGE = 5


class Server:
    """The part of s3fs that a listing uses, over a list of keys. deaf: it ignores where a listing should start."""

    req_kw: ClassVar[dict[str, str]] = {}

    def __init__(self, keys: list[str], *, deaf: bool = False, pause_s: float = 0.0) -> None:
        self.keys, self.deaf, self.pause_s = sorted(keys), deaf, pause_s
        self.requests: list[dict[str, Any]] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    def invalidate_cache(self) -> None:
        """There is none."""

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def info(self, path: str) -> dict[str, Any]:
        if path.partition("/")[2] not in self.keys:
            raise FileNotFoundError(path)
        return {"name": path, "size": 1}

    def call_s3(self, method: str, **request: Any) -> dict[str, Any]:
        assert method == "list_objects_v2"
        with self.lock:
            self.requests.append(request)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(self.pause_s)
        prefix, delimiter = request["Prefix"], request.get("Delimiter")
        after = request.get("ContinuationToken") or ("" if self.deaf else request.get("StartAfter", ""))
        entries: list[str] = []
        for key in self.keys:
            if key.startswith(prefix):
                name, found, _ = key.removeprefix(prefix).partition("/")
                entry = f"{prefix}{name}/" if delimiter and found else key
                if entry > after and (not entries or entry != entries[-1]):
                    entries.append(entry)
        page = entries[:PAGE]
        is_folder = {entry: bool(delimiter) and entry.endswith("/") and entry != prefix for entry in page}
        answer: dict[str, Any] = {
            "Contents": [{"Key": entry, "Size": 1} for entry in page if not is_folder[entry]],
            "CommonPrefixes": [{"Prefix": entry} for entry in page if is_folder[entry]],
            "IsTruncated": len(entries) > PAGE,
        }
        with self.lock:
            self.under_way -= 1
        return answer | ({"NextContinuationToken": page[-1]} if len(entries) > PAGE else {})


def listed(server: Server, root: str) -> list[str]:
    paths = [path for page in s3_pages(server, root) for path in page]
    assert len(paths) == len(set(paths))
    return sorted(paths)


KEYS = st.lists(st.text("a/b.", min_size=1, max_size=8), max_size=120, unique=True)


@given(KEYS, st.sampled_from(["bucket", "bucket/a", "bucket/a/b"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_key_is_listed_once(keys: list[str], root: str, deaf: bool) -> None:
    server = Server(keys, deaf=deaf)
    below = [f"bucket/{key}" for key in sorted(keys) if f"bucket/{key}".startswith(f"{root}/")]
    if not below and root.partition("/")[2] not in ("", *keys):
        with pytest.raises(FileNotFoundError):
            listed(server, root)
        return
    assert listed(server, root) == (below or ([root] if "/" in root else []))


TREES = {
    "flat": [f"n/{number:04d}" for number in range(600)],
    "one folder in one folder": [f"n/x/y/z/{number:04d}" for number in range(600)],
    "as many folders as files": [f"n/{number:04d}/a" for number in range(600)],
    "large and small folders": [f"n/{number % 40 if number % 2 else 50:02d}/{number:04d}" for number in range(600)],
    "deep": [f"n/{number % 3}/{number % 5}/{number % 7}/{number:04d}" for number in range(600)],
    "files between folders": [f"n/{number:04d}" + ("/a" if number % 3 else "") for number in range(600)],
}


@pytest.mark.parametrize("tree", TREES)
def test_requests_stay_few_and_run_side_by_side(tree: str) -> None:
    """Never more at a time than allowed, and at most some two for each page. Only flat keys are listed in turn."""
    server = Server(TREES[tree], pause_s=0.001)
    assert listed(server, "bucket/n") == sorted(f"bucket/{key}" for key in TREES[tree])
    assert server.most <= s3_listing.REQUESTS
    assert len(server.requests) <= 2.5 * 600 / PAGE
    assert (server.most > 1) == (tree not in ("flat", "one folder in one folder"))


def test_a_small_archive_takes_as_many_requests_as_pages() -> None:
    server = Server([f"n/{number}/a" for number in range(4 * PAGE)])
    assert len(listed(server, "bucket")) == 4 * PAGE
    assert len(server.requests) == 4


def test_a_bucket_that_vanishes_is_no_archive_that_shrank(monkeypatch: pytest.MonkeyPatch) -> None:
    def pages(fs: Any, root: str) -> Iterator[dict[str, dict[str, Any]]]:
        yield {f"{root}/a.nii": {"size": 1}}
        raise FileNotFoundError(root)

    monkeypatch.setattr("medret.storage.location._one_page", pages)
    with pytest.raises(NotFoundError, match="vanished while it was listed"):
        list_archive("memory://archive")


@pytest.mark.s3
def test_a_server_that_fails_now_and_then(
    s3: Callable[[str], str], failing_s3: FailingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same objects with the same identities, although one request in ten fails."""
    store = Location(f"{s3('pages')}/n")
    keys = [f"{number % 9}/{number % 2}/{number:03d}.nii" for number in range(60)]
    failing_s3.rate = 0.0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.fs.pipe_file(f"{store.root}/{key}", key.encode()), keys))
    one_by_one = store.fs.find(store.root, detail=True)
    whole = type(store.fs).call_s3

    def small_pages(self: Any, method: str, **request: Any) -> Any:
        return whole(self, method, **({"MaxKeys": PAGE} if method == "list_objects_v2" else {}), **request)

    monkeypatch.setattr("medret.storage.filesystems.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(type(store.fs), "call_s3", small_pages)
    failing_s3.rate = 0.1
    found = Location(store.uri).details()
    assert sorted(found) == sorted(keys)
    for key in keys:
        before = one_by_one[f"{store.root}/{key}"]
        assert {name: found[key][name] for name in ("size", "ETag", "LastModified")} == {
            name: before[name] for name in ("size", "ETag", "LastModified")
        }


def test_times_are_read_in_every_form() -> None:
    """Listings have ISO 8601, headers what HTTP has."""
    iso, http = _moment("2026-01-01T00:00:00.000Z"), _moment("Thu, 01 Jan 2026 00:00:00 GMT")
    assert iso.timestamp() == http.timestamp() == _moment(1767225600).timestamp()
