"""The description of the API for people, at /docs: Swagger UI, from files of this machine alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from medret.errors import NotFoundError

PACKAGE = "fastapi_offline"  # it ships the files of Swagger UI; none of its code is imported
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
PAGE = Path(__file__).parent / "page" / "docs.html"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> Response:
    """The page."""
    return FileResponse(PAGE, media_type="text/html; charset=utf-8")


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """A file of Swagger UI."""
    spec = find_spec(PACKAGE)
    if name not in ASSETS or spec is None or spec.origin is None:
        raise NotFoundError(f"there is no file {name!r} below /docs")
    return FileResponse(Path(spec.origin).parent / "static" / name, media_type=ASSETS[name])
