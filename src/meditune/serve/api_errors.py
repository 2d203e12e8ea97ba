"""Errors in the shape that OpenAI's API gives them, so that its clients raise what their users expect.

https://platform.openai.com/docs/guides/error-codes: `{"error": {"message", "type", "param", "code"}}`.

What is noted of one request on its way: its id, headers to send with it, facts for the log.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from meditune.errors import DataError, EngineError, EngineUnavailableError, MedituneError, ModelError, StoreError
from meditune.observability import LOGGER, where

SCOPE_KEY = "meditune.trace"
"""Where a request's trace lies in its ASGI scope"""


@dataclass
class Trace:
    """One request."""

    given: str | None = None
    """The id that the client named"""
    id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Figures and names, never what was asked"""
    broken: int = 0
    """Status of an error that had to be told inside a stream"""
    store_failed: bool = False
    """Whether the store broke the request off, which no version of a model can help"""
    ended: list[Callable[[int], None]] = field(default_factory=list)
    """Called with the status when the request has ended"""

    def __post_init__(self) -> None:
        self.id = self.given or secrets.token_hex(12)

    def broke(self, error: Exception) -> None:
        """Note what broke the request off."""
        self.store_failed = self.store_failed or isinstance(error, StoreError)


TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
"""By status; anything else of the client's is an invalid request, of ours a server error."""


class ApiError(HTTPException):
    """What a client is told instead of an answer."""

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
        """OpenAI's error object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """As it is sent."""
        return JSONResponse(self.as_dict(), self.status, self.headers)


class ClientGone(Exception):  # noqa: N818 - nothing is wrong: there is nobody left to answer
    """The client left before its answer was whole."""


def busy(message: str, after_s: float, code: str) -> ApiError:
    """429, with the whole seconds after which another try makes sense."""
    return ApiError(429, message, code, headers={"retry-after": str(max(1, round(after_s)))})


def unavailable(error: EngineUnavailableError) -> ApiError:
    """Return what clients and probes are told while there is no engine."""
    message, code = "The model's engine has ended and is being restarted. Try again later.", "engine_restarting"
    if error.given_up:
        message, code = "The model's engine has ended and can't be restarted. The server ends.", "engine_ended"
    return ApiError(503, message, code, headers={"retry-after": str(math.ceil(error.retry_after_s))})


def refused(error: MedituneError) -> ApiError:
    """What the client is told of an error of ours: data and models refuse requests; all else, as a store or an engine
    that fails, is the server's fault, of which the log alone tells more.
    """
    if isinstance(error, DataError | ModelError) and not isinstance(error, StoreError | EngineError):
        return ApiError(400, str(error), "invalid_request")
    if isinstance(error, EngineUnavailableError):
        return unavailable(error)
    # Messages of ours name folders and addresses, which are nobody's business outside.
    LOGGER.error("A request failed", extra=where(error))
    return ApiError(503, "The server can't answer this now. Try again later; its log says where it failed.", "failed")


def invalid(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request, by its parameter; what was sent isn't repeated."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part not in {"body", "query", "path", "header"}]
    # Of several forms that a parameter may have, pydantic names the one that it tried; no client knows those names.
    forms = next((n for n, part in enumerate(place) if re.search(r"[^\w]|^str$", str(part))), None)
    place = place if forms is None else place[:forms]
    param = ".".join(map(str, place)) or None
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"The body is no valid JSON: {reason}", "invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} isn't supported by this server. Leave it out.", "unsupported_parameter", param)
    if not place and first["type"] in {"missing", "model_attributes_type"}:
        code = "missing_body" if first["type"] == "missing" else "invalid_value"
        return ApiError(400, "The body must be a JSON object, sent with Content-Type: application/json.", code)
    if forms is not None:
        return ApiError(400, f"{param}: this is none of the forms that /docs describes.", "invalid_value", param)
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, "invalid_value", param)


async def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """For FastAPI."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_meditune_error(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI."""
    assert isinstance(error, MedituneError)
    trace: Trace = request.scope[SCOPE_KEY]
    trace.broke(error)
    return refused(error).response()


async def on_invalid(_: Request, error: Exception) -> JSONResponse:
    """For FastAPI."""
    assert isinstance(error, RequestValidationError)
    return invalid(error).response()


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: unknown paths and methods, and bodies that can't be parsed."""
    assert isinstance(error, HTTPException)
    said = {
        404: f"There is nothing at {request.url.path[:200]}. /docs lists what there is.",
        405: f"{request.method} isn't possible at {request.url.path[:200]}.",
    }
    codes = {404: "not_found", 405: "method_not_allowed", 400: "invalid_json"}
    message = said.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, codes.get(error.status_code), headers=error.headers).response()
