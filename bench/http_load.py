"""A load of HTTP requests from one light process: many connections, each with one request at a time.

A request is bytes that were made beforehand; of an answer only the status and the length are looked at. So what it
measures is the server: the processor time that it takes itself is told beside the rest.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

CHUNK = 1 << 18


@dataclass
class Load:
    """What came back. seconds: from the first request to the last answer. cpu_s: processor time of the load itself."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    bytes: int = 0


def post(path: str, document: Any) -> bytes:
    """The bytes of a POST request with a JSON document."""
    body = json.dumps(document).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


@dataclass
class _Connection:
    socket: socket.socket
    sent: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def send(self, request: bytes) -> None:
        """Send a request whole: none is as large as the buffer of a socket."""
        self.received.clear()
        self.sent = time.perf_counter()
        self.socket.sendall(request)


def run_load(port: int, requests: Sequence[bytes], clients: int, until: Callable[[], bool] | None = None) -> Load:
    """Send the requests over `clients` connections to a port of this machine; again and again, if until is given."""
    load, rest = Load(), _turns(requests, until)
    with selectors.DefaultSelector() as selector:
        started, cpu = time.perf_counter(), time.process_time()
        for _, request in zip(range(clients), rest, strict=False):
            opened = _Connection(socket.create_connection(("127.0.0.1", port)))
            selector.register(opened.socket, selectors.EVENT_READ, opened)
            opened.send(request)
        while selector.get_map():
            for key, _ in selector.select():
                connection: _Connection = key.data
                data = connection.socket.recv(CHUNK)
                connection.received += data
                status = _status(connection.received)
                if data and not status:
                    continue
                load.latencies_ms.append((time.perf_counter() - connection.sent) * 1e3)
                load.statuses[status] += 1
                load.bytes += len(connection.received)
                following = next(rest, None) if data else None
                if following is None:
                    selector.unregister(connection.socket)
                    connection.socket.close()
                else:
                    connection.send(following)
        load.seconds, load.cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return load


def _turns(requests: Sequence[bytes], until: Callable[[], bool] | None) -> Iterator[bytes]:
    yield from requests
    while until and not until():
        yield from requests


def _status(received: bytearray) -> int:
    """The status of a whole answer; 0 if bytes of it are missing."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    at = received.lower().find(b"content-length:", 0, end)
    length = int(received[at + 15 : received.find(b"\r", at)])
    return int(received[9:12]) if len(received) >= end + 4 + length else 0
