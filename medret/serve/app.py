"""The ASGI application: its page, how errors become answers, and how uvicorn runs it.

The API is described for people at /docs: Swagger UI, from files of this machine alone. uvicorn gives no connection more
than some seconds for the head of a request, and none to a body that was answered already.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from medret._version import __version__
from medret.errors import MedretError, NotFoundError, UsageError, missing_package
from medret.serve.access import Tokens
from medret.serve.endpoints import router
from medret.serve.guard import Guard, is_loopback
from medret.serve.messages import Refused, problem, refusal
from medret.serve.service import CONTENT_TYPE, Service
from medret.visible import visible

PAGE = Path(__file__).parent / "page"
SWAGGER_UI = "fastapi_offline"  # the package that ships the files of Swagger UI; none of its code is imported
SWAGGER_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
WATCH_SECONDS = 2.0  # between looks at CURRENT
CONNECTIONS_PER_REQUEST = 4  # browsers keep several open
HEAD_BYTES = 64 << 10


def create_app(service: Service) -> FastAPI:
    """The application over a service. It may run in any ASGI server."""
    app = FastAPI(
        title="medret",
        version=__version__,
        description="Search archives of CT and MRI volumes by content.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    _add_errors(app)
    app.include_router(router)
    app.add_middleware(Guard, service=service)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        return Response("ready\n", media_type="text/plain")  # the stores were opened before the server started

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", media_type="text/html; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html", media_type="text/html; charset=utf-8")

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        spec = find_spec(SWAGGER_UI)
        if name not in SWAGGER_FILES or spec is None or spec.origin is None:
            raise NotFoundError(f"there is no file {name!r} below /docs")
        return FileResponse(Path(spec.origin).parent / "static" / name, media_type=SWAGGER_FILES[name])

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        return problem(422, "wrong_request", visible(f"{at}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def _without_route(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "wrong_request")
        return problem(error.status_code, code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(MedretError)
    async def _refused(_: Request, error: MedretError) -> Response:
        return refusal(error)

    @app.exception_handler(ImportError)
    async def _not_installed(_: Request, error: ImportError) -> Response:
        missing = missing_package(error)
        if missing is None:
            raise error
        return refusal(missing)

    @app.exception_handler(Refused)
    async def _not_taken(_: Request, error: Refused) -> Response:
        return error.answer()


def check_reach(host: str, tokens: Tokens | None) -> None:
    """Raise UsageError where everyone could ask for everything."""
    if tokens is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, and without tokens everyone there could see every "
            "volume: give --token-file FILE (`medret serve --make-token NAME` prints an entry for it), or leave --host "
            "out and reach this machine through ssh -L"
        )


def server_config(service: Service, host: str, port: int) -> uvicorn.Config:
    """How uvicorn runs the application; raises UsageError as `check_reach` does."""
    check_reach(host, service.tokens)

    class Protocol(ImpatientProtocol):
        unread_seconds = service.settings.upload_seconds

    return uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
        limit_concurrency=CONNECTIONS_PER_REQUEST * service.settings.in_flight,
    )


def listening(host: str, port: int) -> list[socket.socket]:
    """Listen at every address of a host; port 0: any that is free. Raises UsageError."""
    sockets: list[socket.socket] = []
    absent: OSError | None = None  # an address that this machine does not have: ::1 of localhost without IPv6
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, address[0]) for family, *_, address in found):
            try:
                sockets.append(socket.create_server((str(address), port), family=family))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                absent = error
            else:
                port = sockets[0].getsockname()[1]
        if absent is not None and not sockets:
            raise absent
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--host {host} --port {port} cannot be listened at: {why}") from error
    return sockets


def run_server(service: Service, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished. Raises UsageError before anything is served.

    announce: takes a line that says where.
    """
    config = server_config(service, host, port)
    sockets = listening(host, port)
    service.live.watch(WATCH_SECONDS)
    shown = f"[{host}]" if ":" in host else host
    port = sockets[0].getsockname()[1]
    announce(f"medret serves {', '.join(service.live.current.ids)} at http://{shown}:{port}/")
    try:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended well, and says again what ended it
            uvicorn.Server(config).run(sockets=sockets)
    finally:
        service.live.close()


class ImpatientProtocol(HttpToolsProtocol):
    """Closes connections that take too long over a head, or over the rest of a body that was answered already."""

    head_seconds: ClassVar[float] = 10
    unread_seconds: ClassVar[float] = 60  # in which a client takes something of what was written for it

    _timer: asyncio.TimerHandle | None = None
    _looks: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _head_bytes = 0
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a first request."""
        super().connection_made(transport)
        self._wait()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        if self._looks is not None:
            self._looks.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; then close the connection if its head is too long, and wait if no request is under way."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.")
        if not self._is_answering():
            self._wait()

    def _look(self) -> None:
        """Drop a connection that has taken nothing since the last look: closing it would wait for it."""
        unread = self.transport.get_write_buffer_size()
        if 0 < unread == self._unread_bytes:  # nothing more is written for whoever takes nothing
            self.transport.abort()
        else:
            self._unread_bytes = unread
            self._looks = self.loop.call_later(self.unread_seconds, self._look)

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its type says
        return cycle is not None and not cycle.response_complete

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is complete: from here on, the application bounds the time."""
        self._in_head = False
        self._stop()
        super().on_headers_complete()

    def _wait(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
