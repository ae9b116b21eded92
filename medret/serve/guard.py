"""The guard around the application: who asks, what leaves with every answer, and what is logged and counted of it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Send

from medret.serve.access import LOCAL, Caller, Record
from medret.serve.messages import Refused, problem
from medret.serve.service import Service
from medret.visible import visible

LOGGER = logging.getLogger(__name__)
Connection = MutableMapping[str, Any]  # what ASGI says of a request

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
PROBES = frozenset(("/healthz", "/readyz"))  # asked every few seconds: neither audited nor refused when busy
WITHOUT_DATA = PROBES | {"/", "/docs", "/openapi.json", "/favicon.ico"}
FOLDERS_WITHOUT_DATA = ("/page/", "/docs/")
METRICS = "/metrics"
METHODS = frozenset(("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"))  # others count as one
PICTURE_SECONDS = 300  # for which a browser keeps a picture
DISCONNECTED = 499  # the status in log and metrics where nobody waited for an answer


class _UnwrittenError(Exception):
    """The audit line of an answer could not be written."""


class Guard:
    """ASGI middleware; outside of it nothing answers."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            exchange = _Exchange(self._service, scope, send)
            self._service.in_flight += 1
            try:
                await exchange.answer(self._app, receive)
            finally:
                self._service.in_flight -= 1
                exchange.count()


class _Exchange:
    """One request and its answer."""

    def __init__(self, service: Service, scope: Connection, send: Send) -> None:
        self._service, self._scope, self._send = service, scope, send
        self._began = perf_counter()
        self._caller = Caller("")
        self._record = Record()
        self._status = 0
        self._sent_bytes = 0
        self._path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        state = scope.setdefault("state", {})
        state["record"] = self._record

    async def answer(self, app: ASGIApp, receive: Receive) -> None:
        """Let the application answer, or refuse."""
        try:
            try:
                self._check()
                await app(self._scope, receive, self._sending)
            except Refused as error:
                await error.answer()(self._scope, receive, self._sending)
        except _UnwrittenError:
            refused = problem(503, "no_audit", "this request cannot be logged, so it is not answered")
            await refused(self._scope, receive, self._sending_unaudited)
        except ClientDisconnect:
            if not self._status:
                self._disconnected()
        except Exception:  # a mistake in medret: it is told to the operator, not to the caller
            LOGGER.exception("%s %s failed", self._scope["method"], visible(self._path))
            await self._failed(receive)
        if not self._status:
            self._disconnected()

    async def _failed(self, receive: Receive) -> None:
        if self._status:
            return  # half of an answer was sent: the connection ends
        try:
            failed = problem(500, "failed", "this request failed; the server's log says why")
            await failed(self._scope, receive, self._sending)
        except _UnwrittenError:
            self._status = 500

    def _disconnected(self) -> None:
        self._status = DISCONNECTED
        with suppress(_UnwrittenError):  # nobody waits for an answer
            self._audit()

    def _check(self) -> None:
        headers = dict(self._scope["headers"])
        service = self._service
        if service.tokens is None:
            _check_local(headers)
            self._caller = LOCAL
        elif not self._is_without_data():
            authorization = headers.get(b"authorization")
            self._caller = service.tokens.caller(None if authorization is None else authorization.decode("latin-1"))
            if self._path == METRICS and self._caller.where is not None:
                raise Refused(403, "no_access", "metrics are about all volumes, which this token may not see")
        self._scope["state"]["caller"] = self._caller
        if service.in_flight > service.settings.in_flight and self._path not in PROBES:
            raise Refused(503, "busy", f"{service.settings.in_flight} requests are under way", retry_after=1)

    async def _sending(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            try:
                self._audit()
            except _UnwrittenError:
                self._status = 0
                raise
        await self._sending_unaudited(message)

    async def _sending_unaudited(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._add_headers(MutableHeaders(scope=message))
        else:
            self._sent_bytes += len(message.get("body", b""))
        try:
            async with asyncio.timeout(self._service.settings.upload_seconds):
                await self._send(message)
        except TimeoutError as error:  # whoever asked does not read the answer
            raise ClientDisconnect from error

    def _add_headers(self, headers: MutableHeaders) -> None:
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        if "cache-control" in headers:
            return
        if self._is_without_data():
            headers["Cache-Control"] = "no-cache"
        elif headers.get("content-type", "").startswith("image/") and self._status == 200:
            headers["Cache-Control"] = f"private, max-age={PICTURE_SECONDS}"
            headers.add_vary_header("Authorization")
        else:
            headers["Cache-Control"] = "no-store"

    def _is_without_data(self) -> bool:
        return self._path in WITHOUT_DATA or self._path.startswith(FOLDERS_WITHOUT_DATA)

    def _audit(self) -> None:
        log = self._service.audit
        if log is None or self._path in PROBES:
            return
        client = self._scope.get("client")
        record = self._record
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": self._caller.name,
            "client": client[0] if client else None,
            "method": self._scope["method"],
            "path": self._path,
            "query": _query(self._scope["query_string"]),
            "asked": record.asked,
            "uploads": record.uploads,
            "status": self._status,
            "shown": record.shown if self._status == 200 else [],
            "snapshots": record.snapshots,
            "milliseconds": round((perf_counter() - self._began) * 1000, 1),
        }
        try:
            log.write(line)
        except OSError as error:
            LOGGER.error("the audit log cannot be written: %s", error)
            raise _UnwrittenError from error

    def count(self) -> None:
        """Count the request in the metrics."""
        route = getattr(self._scope.get("route"), "path", None)
        known: str = route if isinstance(route, str) else "/page" if self._path.startswith("/page/") else "other"
        seconds = perf_counter() - self._began
        method = self._scope["method"] if self._scope["method"] in METHODS else "other"
        self._service.metrics.count(method, known, self._status, seconds, self._sent_bytes, self._record)


def _query(query_string: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=100))
    except ValueError:  # more fields than any endpoint has
        return {"query": query_string[:1000].decode("latin-1")}


def _check_local(headers: dict[bytes, bytes]) -> None:
    """Without tokens, only this machine asks, and no page of another site through a browser of this machine."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if not is_loopback(_name(host)):
        raise Refused(
            403,
            "wrong_host",
            "without tokens this server is asked as localhost only; start it with --token-file to ask it otherwise",
        )
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
        raise Refused(403, "wrong_origin", "another site's page may not ask this server")


def _name(host: str) -> str:
    """The name or address in a Host header; empty if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "" if parts.netloc == host and "@" not in host else ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or an address is that of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
