"""Two thousand requests drawn from the OpenAPI document, and from beside it: none is a failure of the server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from medret.visible import visible

EXPECTED = {200, 307, 400, 403, 404, 405, 413, 422}  # 5xx is a failure: nothing here is busy or missing
ODD = [
    *(
        "",
        "0",
        "-1",
        "1e400",
        "NaN",
        "null",
        "\x00",
        "\u202e",
        "\ufffd",
        "é",
        "日本",
        "'",
        '"',
        "' or 1=1 --",
        "{{7*7}}",
    ),
    *("../../etc/passwd", "%2e%2e", "a" * 3000, "<script>", "file:///etc/passwd", "http://127.0.0.1:1/x", "store#id"),
    *("chest_ct/0.nii.gz#x", "9" * 30, "-9223372036854775809", "\r\nX: y"),
]
KNOWN = [
    *("chest_ct/0.nii.gz", "leg_mri/1.nii.gz", "axial", "sagittal", "foreground", "lung", "modality = 'CT'", "organ"),
    *("self", "mean", "5", "0:3", "0:3,0:3,0:3", "uniform:2", "gaussian:0.5,0.2", "timm:test_vit", "exact", "late"),
]
WORDS = st.one_of(st.sampled_from(KNOWN), st.sampled_from(ODD), st.text(max_size=40))
NUMBERS = st.one_of(st.integers(-3, 12), st.integers(), st.floats(), st.sampled_from([10**30, -(2**63), 1e-320]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def fuzzed(make_app: Callable[..., FastAPI]) -> Iterator[tuple[TestClient, dict[str, Any]]]:
    app = make_app(volume_bytes=1 << 20, body_bytes=1 << 16, upload_bytes=1 << 17)
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client, client.get("/openapi.json").json()


def _fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows, roughly."""
    if "anyOf" in schema:
        return st.one_of([_fitting(each) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "integer":
            low = schema.get("minimum", -5)
            return st.integers(low, min(schema.get("maximum", low + 40), low + 40))
        case "number":
            return st.floats(-2000, 2000)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(_fitting(schema.get("items", {})), max_size=70)
        case "object":
            return st.dictionaries(WORDS, _fitting(schema.get("additionalProperties") or {}), max_size=2)
    return WORDS


def _body(draw: Any, operation: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The body of a request: a search that mostly fits, a form, or anything."""
    contents = operation.get("requestBody", {}).get("content", {})
    kind = draw(st.sampled_from(["fits", "fits", "fits", "form", "values", "bytes"])) if contents else "none"
    schema = contents.get("application/json", {}).get("schema", {})
    fields = schema.get("properties", {})
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True)) if fields else []
    asked = {name: draw(_fitting(fields[name]) if draw(st.booleans()) else VALUES) for name in chosen}
    if draw(st.booleans()):
        asked.setdefault("volume", "chest_ct/0.nii.gz")
    match kind:
        case "fits":
            return {
                "content": json.dumps(asked).encode("utf-8", "replace"),
                "headers": {"content-type": "application/json"},
            }
        case "values":
            return {
                "content": json.dumps(draw(VALUES)).encode(),
                "headers": {"content-type": draw(st.sampled_from(["", "text/plain", "application/json"]))},
            }
        case "bytes":
            return {
                "content": draw(st.binary(max_size=300)),
                "headers": {
                    "content-type": draw(
                        st.sampled_from(
                            [
                                "multipart/form-data",
                                "multipart/form-data; boundary=x",
                                "application/json; charset=utf-16",
                            ]
                        )
                    )
                },
            }
        case "form":
            raw = gzip.decompress(data)
            at, cut = draw(st.integers(0, 360)), draw(st.integers(0, len(raw)))
            damaged = raw[:at] + draw(st.binary(min_size=1, max_size=8)) + raw[at + 1 : cut + at]
            names = st.sampled_from(["file", "file", "file", "mask", "options", "other"])
            parts = draw(
                st.lists(
                    st.tuples(
                        names,
                        st.sampled_from(ODD),
                        st.sampled_from([damaged, gzip.compress(damaged, 1), data[:200], b"", b"PK\x03\x04"]),
                    ),
                    min_size=1,
                    max_size=3,
                )
            )
            options = {} if draw(st.booleans()) else {"options": json.dumps(asked)}
            return {"files": [(name, (sent or "x", content)) for name, sent, content in parts], "data": options}
    return {}


def test_no_request_is_a_failure_of_the_server(
    fuzzed: tuple[TestClient, dict[str, Any]], archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, document = fuzzed
    data = (archive / "chest_ct/0.nii.gz").read_bytes()
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 7
    statuses: dict[int, int] = {}

    @settings(
        max_examples=2000,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def ask(drawing: st.DataObject) -> None:
        draw = drawing.draw
        method, path, operation = operations[draw(st.integers(0, len(operations) - 1))]
        query = []
        for parameter in operation.get("parameters", []):
            fitting = _fitting(parameter["schema"]).map(str)
            value = draw(st.one_of(fitting, fitting, WORDS))
            if parameter["in"] == "path":
                path = path.replace(
                    f"{{{parameter['name']}}}",
                    quote(value.encode("utf-8", "replace"), safe=draw(st.sampled_from(["", "/"]))),
                )
            elif draw(st.booleans()):
                query.append((parameter["name"], value))
        if draw(st.integers(0, 19)) == 0:
            method = draw(st.sampled_from(["DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "FOO"]))
        target = path + "?" + "&".join(f"{name}={quote(value.encode('utf-8', 'replace'))}" for name, value in query)
        answer = client.request(method, target, **_body(draw, operation, data))
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code in EXPECTED, (
            f"{method} {target}: {answer.status_code} {answer.text[:500]} {caplog.text[-3000:]}"
        )
        if answer.status_code >= 400 and method != "HEAD":
            problem = answer.json()
            assert set(problem) == {"code", "reason"}
            assert problem["reason"] == visible(problem["reason"])

    ask()
    assert sum(statuses.values()) >= 2000
    assert statuses[200] > 100, f"too few requests fit to say much: {statuses}"
