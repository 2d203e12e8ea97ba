"""Connections that can't hang: request heads have a size and a time, and bad ones get an error that clients can read.

uvicorn waits for a request's head as long as the other side likes; many such connections are how slow clients take a
server down.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from meditune.serve.errors import ApiError
from meditune.serve.logs import LOGGER
from meditune.serve.settings import Settings

USER_TIMEOUT_MS = 60_000
SEND_BYTES = 128 << 10
"""What the system holds for a client that doesn't read; left to itself it takes megabytes"""


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with these limits."""

    class Connection(H11Protocol):
        """One connection."""

        def connection_made(self, transport: Any) -> None:
            """Take it, or refuse it where there are too many."""
            super().connection_made(transport)
            _keep_short(transport)
            if len(self.connections) > settings.connections:
                self._refuse(503, "Too many connections.", "overloaded")
                return
            self._head_timer: asyncio.TimerHandle | None = None
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget it."""
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Give it to the parser, and count the time until a head is whole."""
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._expect_head()
            else:
                self._stop_timer()

        def on_response_complete(self) -> None:
            """Wait for the next head; what came of it already counts."""
            super().on_response_complete()
            if not self.transport.is_closing() and self.conn.trailing_data[0]:
                self._expect_head()

        def send_400_response(self, _: str) -> None:
            """The request can't be parsed, or its head is too large."""
            if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                self.transport.close()
                return
            large = len(self.conn.trailing_data[0]) >= settings.header_bytes
            if large:
                self._refuse(
                    431, f"The request's head is larger than {settings.header_bytes:,} bytes.", "head_too_large"
                )
            else:
                self._refuse(400, "This is no valid HTTP request.", "invalid_http")

        def _expect_head(self) -> None:
            if getattr(self, "_head_timer", None) is None:
                self._head_timer = self.loop.call_later(settings.header_s, self._head_too_slow)

        def _head_too_slow(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self._refuse(408, "The request's head didn't come in time.", "timeout")

        def _stop_timer(self) -> None:
            timer = getattr(self, "_head_timer", None)
            if timer is not None:
                timer.cancel()
                self._head_timer = None

        def _refuse(self, status: int, message: str, code: str) -> None:
            """Answer without the application, and close."""
            self._stop_timer()
            LOGGER.info("connection refused", extra={"status": status, "why": code})
            body = json.dumps(ApiError(status, message, code).as_dict()).encode()
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return Connection


_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def _keep_short(transport: asyncio.Transport) -> None:
    """Let the system hold little for the other side, and find out that it is gone although it never said so."""
    made = transport.get_extra_info("socket")
    if made is None or made.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
