"""From the body of a request to a checked search and its query, and from an answer to JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidationError

from medret.errors import NotFoundError, UsageError
from medret.search import Snapshots, VolumeName, Words
from medret.serve.messages import SearchRequest
from medret.serve.refusals import Refused
from medret.serve.uploads import FILE, MASK, MULTIPART, OPTIONS, check_length, too_large, too_slow
from medret.visible import visible


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
