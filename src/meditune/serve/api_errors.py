"""Errors in the format of OpenAI's API, so that OpenAI's clients raise the expected exceptions; and request traces.

https://platform.openai.com/docs/guides/error-codes: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from meditune.errors import (
    DamagedIndexError,
    DataError,
    EngineError,
    EngineUnavailableError,
    MedituneError,
    ModelError,
    StoreError,
)
from meditune.observability import LOGGER, error_location

SCOPE_KEY = "meditune.trace"
"""The key of a request's trace in its ASGI scope"""


@dataclass
class Trace:
    """The trace of one request: its id, headers to send with the response, and facts for the log."""

    id: str
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers and names, never the text of a question"""
    stream_status: int = 0
    """The status of an error that was reported inside a stream; 0 if there was none"""
    store_failed: bool = False
    """True if the request failed because of the store or the index. The model's version isn't blamed for that."""
    started: float = field(default_factory=time.monotonic)
    """When the request started, on the monotonic clock"""
    ended: list[Callable[[int], None]] = field(default_factory=list)
    """Callbacks to call with the HTTP status when the request has ended"""


TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
"""HTTP status -> error type. Any other 4xx status is `invalid_request_error`, and any 5xx status `server_error`."""


class ApiError(HTTPException):
    """An error response to a client."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.status, self.message, self.code, self.param = status, message, code, param

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        return JSONResponse(self.as_dict(), self.status, self.headers)


class ClientDisconnected(Exception):  # noqa: N818 - this isn't an error: nobody is left to answer
    """The client disconnected before its answer was complete."""


def too_many_requests(message: str, after_s: float, code: str) -> ApiError:
    """Return a 429 error whose Retry-After header is `after_s`, rounded up to whole seconds and at least 1."""
    return ApiError(429, message, code, headers={"retry-after": str(max(1, math.ceil(after_s)))})


def timed_out(after_s: int = 1) -> ApiError:
    """Return the 504 error for an answer that took too long; its Retry-After header is `after_s`."""
    message = "The answer took too long and was stopped. Try again later, or ask for a shorter answer."
    return ApiError(504, message, "timeout", headers={"retry-after": str(after_s)})


def unavailable(error: EngineUnavailableError) -> ApiError:
    """Return the 503 error that clients and health probes get while the engine is unavailable."""
    message, code = "The model's engine has stopped and is being restarted. Try again later.", "engine_restarting"
    if error.given_up:
        message, code = "The model's engine has stopped and can't be restarted. The server is stopping.", "engine_ended"
    return ApiError(503, message, code, headers={"retry-after": str(math.ceil(error.retry_after_s))})


def as_api_error(error: Exception, trace: Trace | None = None) -> ApiError:
    """Return the API error for any exception, and record in the trace whether the store or the index failed.

    A DataError or ModelError is the request's fault (400). Failures of the store, the index or the engine, and other
    errors of Meditune, are the server's fault (503); only the log contains the details. Unexpected exceptions (500) are
    logged with a traceback.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error)
    if isinstance(error, TimeoutError):
        return timed_out()
    if trace is not None and isinstance(error, StoreError | DamagedIndexError):
        trace.store_failed = True
    own = StoreError | DamagedIndexError | EngineError
    if isinstance(error, DataError | ModelError) and not isinstance(error, own):
        return ApiError(400, str(error), "invalid_request")
    if isinstance(error, EngineUnavailableError):
        return unavailable(error)
    if isinstance(error, MedituneError):
        # The error's message can contain paths and addresses, which clients must not see.
        LOGGER.error("A request failed", extra=error_location(error))
        return ApiError(503, "The server can't answer this now. Its log has the details. Try again later.", "failed")
    LOGGER.error("An answer failed", exc_info=error)
    return ApiError(500, "The server failed to process this request. The server's log has the details.", "server_error")


def invalid(error: RequestValidationError) -> ApiError:
    """Return an error for the first invalid parameter of a request. It names the parameter, but not the value."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part not in {"body", "query", "path", "header"}]
    # For a union type, pydantic's location also names the type that it tried, which clients don't know.
    forms = next((n for n, part in enumerate(place) if re.search(r"[^\w]|^str$", str(part))), None)
    place = place if forms is None else place[:forms]
    param = ".".join(map(str, place)) or None
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"The body isn't valid JSON: {reason}", "invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"This server doesn't support {param}. Leave it out.", "unsupported_parameter", param)
    if not place and first["type"] in {"missing", "model_attributes_type"}:
        code = "missing_body" if first["type"] == "missing" else "invalid_value"
        return ApiError(400, "The body must be a JSON object, sent with Content-Type: application/json.", code)
    if forms is not None:
        return ApiError(400, f"{param} matches none of the types that /docs lists.", "invalid_value", param)
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, "invalid_value", param)


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Return the response for an error of a route, or for an unknown path or method."""
    if isinstance(error, HTTPException) and not isinstance(error, ApiError):
        path = request.url.path[:200]
        message, code = {
            404: (f"There is nothing at {path}. /docs lists all routes.", "not_found"),
            405: (f"{path} doesn't support {request.method}. /docs lists all routes.", "method_not_allowed"),
            400: (error.detail, "invalid_json"),
        }.get(error.status_code, (error.detail, None))
        error = ApiError(error.status_code, message, code, headers=error.headers)
    return as_api_error(error, request.scope[SCOPE_KEY]).response()
