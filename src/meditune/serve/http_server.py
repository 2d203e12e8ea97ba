"""The server's process: where it listens, and how it ends.

Connections that can't hang: request heads have a size and a time, and bad ones get an error that clients can read.

uvicorn waits for a request's head as long as the other side likes; many such connections are how slow clients take a
server down.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from meditune.errors import EngineUnavailableError, MedituneError, ModelError, Stopped, install_command
from meditune.observability import LOGGER
from meditune.serve.api_errors import ApiError
from meditune.serve.settings import Settings

if TYPE_CHECKING:
    import uvicorn

    from meditune.serve.service import Service

SWITCH_S = 0.0005
"""The interpreter's switch interval: at its usual 5 ms the event loop waits too long for triage at each step"""
LOCAL = {"127.0.0.1", "localhost", "::1"}
EVERYWHERE = {"0.0.0.0", "::", ""}
LOOK_S = 0.25
"""How often the server looks whether its engine is given up"""
LAST_S, FORCED_S = 5, 15.0
"""How long other answers may take then, and how long the process"""


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    """TLS: its chain in PEM, with ..."""
    private_key: Path | None = None
    """... its key"""
    proxies: str = ""
    """Addresses of proxies whose X-Forwarded-For and -Proto are believed, with commas between them"""

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOCAL

    def address(self, port: int) -> str:
        """As a browser calls it."""
        named = socket.gethostname() if self.host in EVERYWHERE else self.host
        at = f"[{named}]" if ":" in named else named
        return f"{'https' if self.certificate else 'http'}://{at}:{port}/"


def refuse_uninstalled() -> None:
    """Raise ModelError, with the line that installs it, where a package is missing that only servers need."""
    if find_spec("prometheus_client") is None:
        raise ModelError(f"Serving needs prometheus-client. Install it with: {install_command('serve')}")


def listening(place: Place) -> socket.socket:
    """A socket that listens there. Raises MedituneError where it can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(512)
    except OSError as error:
        raise MedituneError(
            f"{place.host}:{place.port} can't be listened on ({error.strerror}). Choose another --host or --port; "
            "--port 0 takes a free one."
        ) from error
    return made


def server_of(service: Service, place: Place) -> uvicorn.Server:
    """uvicorn with the service's application and limits."""
    import uvicorn

    from meditune.serve.app import app_for

    settings = service.settings
    return uvicorn.Server(
        uvicorn.Config(
            app_for(service),
            http=protocol(settings),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(place.proxies),
            forwarded_allow_ips=place.proxies or None,
            timeout_keep_alive=int(settings.idle_s),
            timeout_graceful_shutdown=int(settings.ending_s),
            h11_max_incomplete_event_size=settings.header_bytes,
            ssl_certfile=place.certificate,
            ssl_keyfile=place.private_key,
        )
    )


def run(service: Service, place: Place, sock: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until the process is told to end; running answers are finished then, new ones refused.

    `ready` is told the address when requests are taken. Raises EngineUnavailableError where the model's engine
    ended and can't be restarted: the process ends with that error's exit code.
    """
    sys.setswitchinterval(SWITCH_S)
    server = server_of(service, place)
    address = service.address = place.address(sock.getsockname()[1])
    threading.Thread(target=_tell, args=(server, lambda: ready(address)), daemon=True).start()
    threading.Thread(target=_end_with_engine, args=(server, service), name="engine", daemon=True).start()
    # uvicorn repeats the signal that ended it when all is done; it isn't an interruption here.
    with suppress(Stopped):
        server.run(sockets=[sock])
    if (failure := _given_up(service)) is not None:
        raise failure


def _end_with_engine(server: uvicorn.Server, service: Service) -> None:
    """End the server when its engine is given up, by force where a thread that is stuck would keep the process."""
    while (failure := _given_up(service)) is None:
        if server.should_exit:
            return
        time.sleep(LOOK_S)
    # Nobody waits for the model's answers any more: they were told of their end.
    server.config.timeout_graceful_shutdown = LAST_S
    server.should_exit = True
    time.sleep(FORCED_S)
    LOGGER.critical("the process is ended by force", extra={"why": str(failure)})
    os._exit(failure.exit_code)


def _given_up(service: Service) -> EngineUnavailableError | None:
    """Return why the engine can't be restarted; None while it lives, or another one is on its way."""
    failure = service.engine.failure()
    return failure if isinstance(failure, EngineUnavailableError) and failure.given_up else None


def _tell(server: uvicorn.Server, ready: Callable[[], None]) -> None:
    """Call `ready` as soon as the server takes requests."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.01)
    ready()


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
