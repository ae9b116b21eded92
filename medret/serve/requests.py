"""From a request to its caller and to a checked search with its query, and from an answer to JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import ValidationError

from medret.errors import NotFoundError, UsageError
from medret.search import FileContent, SearchOptions, Snapshots, VolumeName, Words
from medret.serve.access import Record, caller_of, record_of
from medret.serve.live import Opened
from medret.serve.messages import Refused, SearchRequest
from medret.serve.service import Service
from medret.serve.uploads import FILE, MASK, MULTIPART, OPTIONS, Upload, check_length, too_large, too_slow
from medret.visible import visible
from medret.volume import Limits, content_sha256

MASK_NAME = "mask"
Answer = TypeVar("Answer")
LOGGER = logging.getLogger(__name__)


def service_of(request: Request) -> Service:
    """The service that answers a request."""
    service: Service = request.app.state.service
    return service


class Asker:
    """Asks the live snapshots for one request: as its caller sees them, in one of the service's threads."""

    def __init__(self, request: Request) -> None:
        self._request, self.service = request, service_of(request)
        self.caller, self.record = caller_of(request), record_of(request)

    async def ask(self, question: Callable[[Snapshots], Answer], stage: str = "search") -> Answer:
        """The answer to a question; raises its errors."""
        limiter = self.service.drawers if stage == "pictures" else self.service.threads
        return await self.service.in_thread(lambda: self._answered(question), limiter, self.record, stage)

    async def ask_encoding(self, question: Callable[[Snapshots], Answer]) -> Answer:
        """The answer to a question that decodes and encodes a volume, in one of the encoder's slots."""
        return await self.service.in_thread(
            lambda: self._answered(question),
            self.service.uploads.slots,
            self.record,
            "encode",
            is_gone=self._request.is_disconnected,
        )

    def _answered(self, question: Callable[[Snapshots], Answer]) -> Answer:
        def of(opened: Opened) -> Answer:
            self.record.snapshots = list(opened.ids)
            view = self._view(opened)
            with view.corpus.reading():
                return question(view)

        return self.service.live.ask(of)

    def _view(self, opened: Opened) -> Snapshots:
        try:
            return opened.view(self.caller.where)
        except UsageError as error:  # its text names columns
            LOGGER.warning("the filter of token %s: %s", visible(self.caller.name), visible(str(error)))
            reason = "the filter of this token does not fit what is served now: ask whoever runs this server"
            raise Refused(403, "no_access", reason) from error

    def show(self, snapshots: Snapshots, volumes: Iterable[tuple[str, str]]) -> None:
        """Record volumes as shown, each by store and volume_id; by its id alone if there is one store."""
        is_one = len(snapshots.corpus.stores) == 1
        self.record.shown = [volume_id if is_one else f"{store}#{volume_id}" for store, volume_id in volumes]


async def asker(request: Request) -> Asker:
    """The asker of a request."""
    return Asker(request)


Asking = Annotated[Asker, Depends(asker)]


async def read_body(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """The body of a request; raises Refused if it is longer, or takes longer to arrive."""
    check_length(request, max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large(max_bytes)
    except TimeoutError as error:
        raise too_slow(seconds) from error
    return bytes(body)


def checked(body: bytes) -> SearchRequest:
    """The search that a JSON document asks for; raises Refused that says where it is wrong."""
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refused(422, "wrong_request", visible(f"{at[:200]}: {first['msg'][:500]}")) from error


def stored_query(snapshots: Snapshots, asked: SearchRequest) -> tuple[Any, str]:
    """The query of a search without a file, and how an answer names it; raises UsageError."""
    given = [name for name in ("volume", "text", "vector", "vectors") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise UsageError(
            f"the request has {' and '.join(given) or 'no query'}: give one of volume, text, vector and "
            "vectors, or a file"
        )
    if asked.volume is not None:
        query = VolumeName(asked.volume, asked.store)
        seen_volume(snapshots, query)
        return query, asked.volume
    if asked.text is not None:
        return Words(asked.text), asked.text
    values = asked.vector if asked.vector is not None else asked.vectors
    try:
        vectors = np.array(values, np.float32)
    except ValueError as error:
        raise UsageError("vectors have different lengths: each must have as many numbers as the others") from error
    return vectors, f"array of shape {vectors.shape}"


def query_of(upload: Upload, asked: SearchRequest, limits: Limits, record: Record) -> FileContent:
    """The query that an uploaded file is; raises UsageError, VolumeError."""
    if given := [name for name in ("volume", "store", "text", "vector", "vectors") if getattr(asked, name) is not None]:
        raise UsageError(f"there is a file and {given[0]}: give one query")
    content, mask = upload.content(), upload.mask_content()
    record.uploads[:] = [content_sha256(content)] + ([] if mask is None else [content_sha256(mask)])
    return FileContent(upload.name, content, limits, mask)


def options_of(asked: SearchRequest, query: FileContent, options: dict[str, Any]) -> SearchOptions:
    """The options of a search with an uploaded file; raises UsageError."""
    return asked.options(**options, mask=None if query.mask is None else MASK_NAME)


def seen_volume(snapshots: Snapshots, name: VolumeName) -> tuple[str, str]:
    """Store and volume_id of a volume; raises NotFoundError, the same for one that is hidden from the caller."""
    found = snapshots.corpus.find(name.text)
    if found is None:
        raise NotFoundError(f"there is no volume '{name.volume_id}'")
    (volume_id, store), _ = found
    return snapshots.corpus.stores[store].uri, volume_id


def search_body(*, with_json: bool) -> dict[str, Any]:
    """The body of a search, for the OpenAPI document."""
    binary = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": [FILE],
        "properties": {
            FILE: {
                "type": "array",
                "items": binary,
                "description": "a .nii, .nii.gz or zip of a DICOM series; or the instances of one series",
            },
            OPTIONS: {"type": "string", "description": "the JSON of a search without its query"},
            MASK: binary | {"description": "a NIfTI mask on the grid of the file: the box around it is the query"},
        },
    }
    content: dict[str, Any] = {MULTIPART: {"schema": form, "encoding": {OPTIONS: {"contentType": "text/plain"}}}}
    if with_json:
        content = {"application/json": {"schema": SearchRequest.model_json_schema()}} | content
    return {"requestBody": {"required": True, "content": content}}


def json_answer(document: Any, status: int = 200) -> Response:
    """A document as an answer."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")
