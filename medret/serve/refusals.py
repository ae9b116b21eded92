"""Refusals: the answer that says why a request was not fulfilled, and which error gives which."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from medret.errors import (
    CorruptError,
    DroppedError,
    MedretError,
    MissingPackageError,
    NotFoundError,
    StorageError,
    UsageError,
    VolumeError,
    WeightsError,
)
from medret.storage import redacted
from medret.visible import visible


class Refused(Exception):  # noqa: N818  # it is an answer
    """Refuse a request: the status, a code of one word, the reason, and for how many seconds it is of no use to ask."""

    def __init__(self, status: int, code: str, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.status, self.code, self.reason, self.retry_after = status, code, reason, retry_after

    def answer(self) -> JSONResponse:
        """The answer to send."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="medret"'
        return problem(self.status, self.code, self.reason, headers)


def problem(status: int, code: str, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says why a request was refused; the reason may quote what was sent."""
    return JSONResponse({"code": code, "reason": visible(reason)}, status, headers)


def refusal(error: MedretError) -> JSONResponse:
    """The answer for an error that medret raises on purpose."""
    cause = error if isinstance(error, VolumeError) else error.__cause__
    reason = redacted(str(error))
    match error:
        case NotFoundError():
            return problem(404, "not_found", reason)
        case MissingPackageError() | WeightsError():  # the server's, not the request's
            return problem(503, "no_model", reason)
        case UsageError() | VolumeError():
            if isinstance(cause, VolumeError):
                return problem(422, cause.code, redacted(cause.reason))
            return problem(422, "wrong_usage", reason)
        case DroppedError():
            return problem(503, "replaced", reason, {"Retry-After": "1"})
        case StorageError():
            return problem(503, "unreachable", reason, {"Retry-After": "10"})
        case CorruptError():
            return problem(500, "damaged", reason)
        case _:
            return problem(500, "failed", reason)
