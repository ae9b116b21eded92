"""Listing S3 with several requests at a time gives what one request after the other gives, whatever lies there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medret.archive import list_archive
from medret.errors import NotFoundError
from medret.storage import Location, s3
from medret.storage.filesystems import _moment
from medret.storage.s3 import s3_pages
from tests.failing_s3 import FailingProxy

PAGE = 5


class Server:
    """The part of s3fs that a listing uses, over a list of keys. deaf: it ignores where a listing should start."""

    req_kw: ClassVar[dict[str, str]] = {}

    def __init__(self, keys: list[str], *, deaf: bool = False) -> None:
        self.keys, self.deaf = sorted(keys), deaf
        self.requests: list[dict[str, Any]] = []

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
        self.requests.append(request)
        prefix, delimiter = request["Prefix"], request.get("Delimiter")
        after = request.get("ContinuationToken") or ("" if self.deaf else request.get("StartAfter", ""))
        files: list[dict[str, Any]] = []
        folders: list[dict[str, Any]] = []
        last, more = "", False
        for key in self.keys[max(bisect_left(self.keys, prefix), bisect_left(self.keys, after)) :]:
            if not key.startswith(prefix):
                break
            name, slash, _ = key.removeprefix(prefix).partition("/")
            entry = f"{prefix}{name}/" if delimiter and slash else key
            if entry <= after or entry == last:
                continue
            if len(files) + len(folders) == PAGE:
                more = True
                break
            last = entry
            if delimiter and slash:
                folders.append({"Prefix": entry})
            else:
                files.append({"Key": entry, "Size": 1})
        answer = {"Contents": files, "CommonPrefixes": folders, "IsTruncated": more}
        return answer | ({"NextContinuationToken": last} if more else {})


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


class Clock:
    """In place of threads: a task takes as long as the requests that it makes, and tasks run side by side."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.now = server, 0
        self.left: dict[Future[Any], int] = {}
        monkeypatch.setattr(s3, "ThreadPoolExecutor", lambda _: nullcontext(self))
        monkeypatch.setattr(s3, "wait", self.wait)

    def submit(self, task: Callable[[Any], Any], argument: Any) -> Future[Any]:
        before, future = len(self.server.requests), Future[Any]()
        future.set_result(task(argument))
        self.left[future] = len(self.server.requests) - before
        assert len(self.left) <= s3.REQUESTS
        return future

    def wait(self, running: set[Future[Any]], return_when: str) -> tuple[set[Future[Any]], set[Future[Any]]]:
        passed = min(self.left.values())
        self.now += passed
        self.left = {future: left - passed for future, left in self.left.items()}
        done = {future for future, left in self.left.items() if not left}
        self.left = {future: left for future, left in self.left.items() if left}
        return done, running - done


N = 6000  # keys


@pytest.mark.parametrize(
    ("keys", "times_as_fast", "requests_per_page"),
    [
        pytest.param([f"n/{i // 60:03d}/{i:05d}" for i in range(N)], 9, 1.3, id="folders"),
        pytest.param([f"n/x/y/z/{i // 60:03d}/{i:05d}" for i in range(N)], 9, 1.3, id="one folder in one folder"),
        pytest.param([f"n/{i % 3}/{i % 5}/{i % 7}/{i:05d}" for i in range(N)], 9, 1.3, id="deep"),
        pytest.param([f"n/{i % 7 // 5}/{i // 60:04d}/{i:05d}" for i in range(N)], 8, 1.3, id="most in one of two"),
        pytest.param([f"n/{i // 10:04d}/{i:05d}" for i in range(N)], 4, 1.3, id="folders of ten"),
        pytest.param([f"n/{i:05d}" for i in range(N)], 0.99, 1.01, id="flat"),
        pytest.param([f"n/{i:05d}/a" for i in range(N)], 0.99, 1.01, id="a folder for each file"),
    ],
)
def test_folders_are_listed_side_by_side(
    keys: list[str], times_as_fast: float, requests_per_page: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with one request after the other, and never more at a time than allowed. Pages have five keys here."""
    server = Server(keys)
    clock = Clock(server, monkeypatch)
    assert listed(server, "bucket/n") == sorted(f"bucket/{key}" for key in keys)
    pages = N / PAGE
    assert pages / clock.now >= times_as_fast
    assert len(server.requests) / pages <= requests_per_page


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
