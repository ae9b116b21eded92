"""An S3 endpoint that knows one request: ListObjectsV2 over a bucket of empty volumes, whose keys it computes.

Test servers sort all keys for every page, which makes a listing of 10^5 objects a measurement of them.
"""

from __future__ import annotations

import http.server
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
BUCKET = "archive"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def key(number: int) -> str:
    """The key of object `number`: a thousand to a folder."""
    return f"nifti/{number // PAGE:05d}/{number:08d}.nii.gz"


def size_bytes(number: int) -> int:
    """Its size; no two are equal, as with real files of some megabytes."""
    return 1_000_000 + number


def etag(number: int) -> str:
    """Its entity tag."""
    return f"{number:032x}"


MTIME = "2026-01-01T00:00:00.000Z"


@contextmanager
def listing_server(objects: int) -> Iterator[str]:
    """The endpoint's address; the bucket is `archive`, the prefix `nifti`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """A page of keys or common prefixes."""
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            after = query.get("continuation-token") or query.get("start-after", "")
            listed = "list-type" in query
            page = _page(objects, query.get("prefix", ""), after, folders="delimiter" in query) if listed else b""
            self._send(200, page)

        def do_HEAD(self) -> None:
            """Nothing but what is listed is there."""
            self._send(404, b"")

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _page(objects: int, prefix: str, after: str, *, folders: bool) -> bytes:
    """The first entries below a prefix after a key. folders: common prefixes in place of the keys below them."""
    numbers = range(objects)
    at = max(bisect_left(numbers, prefix, key=key), bisect_right(numbers, after, key=key))
    entries: list[str] = []
    last = ""
    while at < objects and key(at).startswith(prefix) and len(entries) < PAGE:
        name, slash, _ = key(at).removeprefix(prefix).partition("/")
        if folders and slash:
            last = f"{prefix}{name}/"
            if last > after:
                entries.append(f"<CommonPrefixes><Prefix>{last}</Prefix></CommonPrefixes>")
            at = bisect_left(numbers, f"{prefix}{name}0", lo=at, key=key)  # "0" comes after "/"
        else:
            last = key(at)
            entries.append(
                f"<Contents><Key>{last}</Key><LastModified>{MTIME}</LastModified><ETag>&quot;{etag(at)}&quot;</ETag>"
                f"<Size>{size_bytes(at)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
            at += 1
    more = at < objects and key(at).startswith(prefix)
    token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(entries)}</ListBucketResult>"
    ).encode()
