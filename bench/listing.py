"""An S3 endpoint that knows one request: ListObjectsV2 over a bucket of empty volumes, answered from pages made before.

Test servers sort all keys for every page, which makes a listing of 10^5 objects a measurement of them.
"""

from __future__ import annotations

import http.server
import threading
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
    pages = [_page(start, min(objects, start + PAGE), objects) for start in range(0, objects, PAGE)]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """A page, by its token."""
            query = parse_qs(urlsplit(self.path).query)
            token = query.get("continuation-token", ["0"])[0]
            self._send(200, pages[int(token)] if "list-type" in query else b"")

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


def _page(start: int, stop: int, objects: int) -> bytes:
    entries = "".join(
        f"<Contents><Key>{key(n)}</Key><LastModified>{MTIME}</LastModified><ETag>&quot;{etag(n)}&quot;</ETag>"
        f"<Size>{size_bytes(n)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for n in range(start, stop)
    )
    more = stop < objects
    token = f"<NextContinuationToken>{stop // PAGE}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>nifti/</Prefix><KeyCount>{stop - start}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
    ).encode()
