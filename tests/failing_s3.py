"""A proxy before an S3 server that lets a share of the requests go wrong, each in the next of the ways S3 has."""

from __future__ import annotations

import http.client
import http.server
import itertools
import random
import socket
import struct
import threading
import time
from collections import Counter

FAULTS = ("500", "503 SlowDown", "reset before", "reset after", "cut body", "slow body")
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "server", "date"})


class FailingProxy:
    """Listens on loopback, passes requests on to `port`. rate: the share of requests that fail, 0 at first.

    passed: requests that came; failed: how many went wrong, by the way they did. ignored: headers that are lost on the
    way, as in a server that does not know them.
    """

    def __init__(self, port: int) -> None:
        self.rate, self.passed = 0.0, 0
        self.ignored: frozenset[str] = frozenset()
        self.failed: Counter[str] = Counter()
        self._behind = port
        self._kinds = itertools.cycle(FAULTS)
        self._random = random.Random(0)
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy._answer(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  # names that http.server looks for

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _fault(self) -> str | None:
        with self._lock:
            self.passed += 1
            if self._random.random() >= self.rate:
                return None
            kind = next(self._kinds)
            self.failed[kind] += 1
            return kind

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._fault()
        if fault in ("500", "503 SlowDown"):
            code = "InternalError" if fault == "500" else "SlowDown"
            _reply(request, int(fault[:3]), {}, f"<Error><Code>{code}</Code></Error>".encode())
        elif fault == "reset before":
            _reset(request)
        else:
            self._pass_on(request, body, fault)

    def _pass_on(self, request: http.server.BaseHTTPRequestHandler, body: bytes, fault: str | None) -> None:
        behind = http.client.HTTPConnection("127.0.0.1", self._behind, timeout=60)
        try:
            kept = {name: value for name, value in request.headers.items() if name.lower() not in self.ignored}
            behind.request(request.command, request.path, body, kept)
            answer = behind.getresponse()
            content = answer.read()
        finally:
            behind.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
        if fault == "reset after":  # it was done, and nobody hears of it
            _reset(request)
        else:
            _reply(request, answer.status, headers, content, fault)


def _reply(
    request: http.server.BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    body: bytes,
    fault: str | None = None,
) -> None:
    length = headers.pop("Content-Length", str(len(body)))  # of a HEAD: the object's
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", length)
    request.end_headers()
    if request.command == "HEAD":
        return
    half = len(body) // 2
    request.wfile.write(body[:half])
    request.wfile.flush()
    if fault == "slow body":
        time.sleep(0.5)
    if fault == "cut body":
        _reset(request)
    else:
        request.wfile.write(body[half:])


def _reset(request: http.server.BaseHTTPRequestHandler) -> None:
    """Break the connection with an RST."""
    request.close_connection = True
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
