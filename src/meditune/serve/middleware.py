"""Middleware for every request: host and origin checks, size and time limits, headers, request ids, and the log."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meditune import observability
from meditune.observability import LOGGER
from meditune.serve.api_errors import SCOPE_KEY, ApiError, ClientDisconnected, Trace, as_api_error
from meditune.serve.metrics import Metrics
from meditune.serve.settings import Settings

_ID = re.compile(r"[\w.-]{1,64}")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected. It is never sent, and appears only in log, metrics and traces."""
DRAINED_BODIES, DRAIN_S = 16, 5.0
TRACED = ("outcome", "version", "waited", "first_token", "prompt_tokens", "completion_tokens")
"""The facts about a request that its OpenTelemetry span may contain"""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""HTTP headers that are sent with every response"""
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}


class Guard:
    """The ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with observability.span("request", headers) as span:
            given = headers.get("x-request-id", "")
            trace = scope[SCOPE_KEY] = Trace(given if _ID.fullmatch(given) else secrets.token_hex(12))
            if trace_id := observability.trace_id(span):
                trace.facts["trace"] = trace_id
            await self._answer(scope, receive, send, headers, trace, span)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, trace: Trace, span: observability.Span
    ) -> None:
        status = 0

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 413 and "expect" not in headers:
                    await self._drain(receive)
                named = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    named.setdefault(name, value)
                named["x-request-id"] = trace.id
                named.update(trace.headers)
            try:
                async with asyncio.timeout(self.settings.send_s):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnected from None

        begun = time.monotonic()
        try:
            if refusal := self._refusal(scope, headers):
                await refusal.response()(scope, receive, out)
            else:
                await self.app(scope, self._bounded(receive), out)
        except ClientDisconnected:
            status = CLIENT_CLOSED_REQUEST
            self.metrics.cancelled.inc()
        except asyncio.CancelledError:
            # Only the server's shutdown cancels a request; a client that disconnects causes ClientDisconnected.
            scope["app"].state.service.aborted_requests += 1
            raise
        except Exception as error:
            failure = as_api_error(error, trace)
            if status:
                raise
            await failure.response()(scope, receive, out)
        finally:
            status = trace.stream_status or status
            for each in trace.ended:
                each(status)
            self._note(scope, trace, status, time.monotonic() - begun, span)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        """Return the error for a request that must not reach a route; None if the request may pass."""
        host = headers.get("host", "")
        if self.settings.hosts and _url(f"//{host}").hostname not in self.settings.hosts:
            return ApiError(421, "This server doesn't accept requests for this host name.", "wrong_host")
        origin = headers.get("origin")
        if origin and not {origin, "*"} & set(self.settings.origins) and _url(origin).netloc != host:
            message = (
                "Pages from other sites can't call this server unless its operator allows them (--cors). If this page "
                "is the server's own, the proxy in front of the server must pass on the header Host."
            )
            return ApiError(403, message, "wrong_origin")
        if scope["method"] not in METHODS:
            message = "This server doesn't support this HTTP method."
            return ApiError(405, message, "method_not_allowed", headers={"allow": "GET, POST"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.settings.body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self.settings.body_bytes:,} bytes.", "body_too_large")

    async def _drain(self, receive: Receive) -> None:
        """Read and drop the rest of a body that is too large, within limits.

        Closing a connection with unread data resets it, and the client would see the reset instead of the error.
        """
        left = DRAINED_BODIES * self.settings.body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while left > 0 and (message := await receive()).get("more_body"):
                    left -= len(message["body"])

    def _bounded(self, receive: Receive) -> Callable[[], Awaitable[Message]]:
        """Return a `receive` that raises ApiError 413 if the body is too large, and 408 if it is too slow."""
        size = 0
        complete = False
        until = time.monotonic() + self.settings.body_s

        async def bounded() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(max(0.001, until - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, "The body didn't arrive in time.", "timeout") from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self.settings.body_bytes:
                raise self._too_large()
            return message

        return bounded

    def _note(self, scope: Scope, trace: Trace, status: int, seconds: float, span: observability.Span) -> None:
        route = getattr(scope.get("route"), "path", "") or "none"
        method = scope["method"] if scope["method"] in METHODS else "other"
        attributes = {"http.route": route, "http.request.method": method, "http.response.status_code": status}
        attributes |= {f"meditune.{name}": trace.facts[name] for name in TRACED if name in trace.facts}
        for name, value in ({"meditune.request": trace.id} | attributes).items():
            span.set_attribute(name, value)
        self.metrics.requests.labels(route, method, status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if status == 429:
            self.metrics.refused.labels(trace.facts.get("refused", "overloaded")).inc()
        facts = {"request": trace.id, "method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        LOGGER.info("request", extra=facts | trace.facts)


def _url(text: str) -> SplitResult:
    """Return the parts of a URL. All parts are empty if the URL is invalid or has no host."""
    try:
        parts = urlsplit(text)
        return parts if parts.hostname is not None else SplitResult("", "", "", "", "")
    except ValueError:
        return SplitResult("", "", "", "", "")
