"""The ASGI application, and how errors become answers."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from medret._version import __version__
from medret.errors import MedretError, missing_package
from medret.serve import api_docs, endpoints, page_endpoints
from medret.serve.guard import Guard
from medret.serve.refusals import Refused, problem, refusal
from medret.serve.server_metrics import CONTENT_TYPE
from medret.serve.service import Service
from medret.visible import visible

PAGE = Path(__file__).parent / "page"


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
    for router in (page_endpoints.router, endpoints.router, api_docs.router):
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
