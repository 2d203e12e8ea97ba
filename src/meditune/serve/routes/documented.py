"""Responses that routes share, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from meditune.serve.schema.body import Error

_WHY = {
    400: "The request can't be answered as it is: the message names the parameter.",
    401: "No key, or a wrong one.",
    403: "The key lacks the scope, or the page is another site's.",
    404: "There is no such model, answer or page.",
    408: "The body didn't come in time.",
    413: "The body is too large.",
    421: "The server doesn't answer to that name.",
    429: "Rate, quota or capacity is used up; Retry-After says when to come again.",
    500: "The server failed.",
    503: "The server isn't ready.",
    504: "The answer took too long.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses with OpenAI's error object, those that any route may give included."""
    every = sorted({*statuses, 400, 401, 403, 408, 413, 421, 429, 500})
    return {status: {"model": Error, "description": _WHY[status]} for status in every}


def streams(description: str) -> dict[int | str, dict[str, Any]]:
    """A 200 that may also be server-sent events."""
    text = {"type": "string"}
    one = {"type": "object", "properties": {"event": text, "data": text}, "required": ["data"]}
    return {200: {"description": description, "content": {"text/event-stream": {"schema": one}}}}
