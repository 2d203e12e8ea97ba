"""The server's process: its socket, its shutdown, and uvicorn's HTTP protocol with limits.

uvicorn waits indefinitely for a request's head, so slow clients could occupy all connections. Here, request heads are
limited in size and time, and clients that exceed a limit get a readable error.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from meditune.errors import DataError, EngineUnavailableError, MedituneError, ModelError, Stopped, install_command
from meditune.observability import LOGGER
from meditune.serve.api_errors import ApiError
from meditune.serve.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from meditune.serve.service import Service

    Extend = Callable[[FastAPI], None]

SWITCH_S = 0.0005
"""The interpreter's switch interval; at Python's default of 5 ms, triage delays the event loop too much"""
LOCAL = {"127.0.0.1", "localhost", "::1"}
ALL_INTERFACES = {"0.0.0.0", "::", ""}
ENGINE_CHECK_S = 0.25
"""The interval at which the server checks whether its engine can no longer be restarted"""
GRACEFUL_SHUTDOWN_S, FORCED_SHUTDOWN_S = 5, 15.0
"""If the engine can't be restarted: the seconds for running answers to finish, and for the process to end"""


@dataclass(frozen=True)
class ListenConfig:
    """The address, certificate and proxies of a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    """The PEM file of the TLS certificate chain"""
    private_key: Path | None = None
    """The PEM file of the certificate's private key"""
    proxies: str = ""
    """Comma-separated addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto headers are trusted"""

    def __post_init__(self) -> None:
        self.trusted_proxies()

    def trusted_proxies(self) -> list[str]:
        """Return the proxies' addresses; IPv4 addresses also in IPv6 notation, which a server on `::` sees.

        Raises DataError if a proxy is neither an IP address nor a network.
        """
        if self.proxies.strip() == "*":
            return ["*"]
        found = []
        for proxy in filter(None, map(str.strip, self.proxies.split(","))):
            try:
                network = ipaddress.ip_network(proxy)
            except ValueError as error:
                raise DataError(
                    f"--proxy {proxy}: write IP addresses or networks, separated by commas: 10.0.0.2,10.1.0.0/16."
                ) from error
            found.append(proxy)
            if network.version == 4:
                found.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
        return found

    @property
    def local(self) -> bool:
        """Return whether only this machine can reach the server."""
        return self.host in LOCAL

    def address(self, port: int) -> str:
        """Return the server's URL for a browser."""
        named = socket.gethostname() if self.host in ALL_INTERFACES else self.host
        at = f"[{named}]" if ":" in named else named
        return f"{'https' if self.certificate else 'http'}://{at}:{port}/"

    def check_tls(self) -> None:
        """Raise MedituneError if the certificate and the private key, where they are set, can't encrypt requests."""
        certificate, key = self.certificate, self.private_key
        if certificate is None:
            if key is not None:
                raise MedituneError(f"The private key {key} has no certificate. Set it with --certificate.")
            return
        for file in filter(None, (certificate, key)):
            try:
                file.read_bytes()
            except OSError as error:
                raise MedituneError(f"{file} can't be read: {error.strerror}.") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_verify_locations(certificate)
        except OSError as error:
            raise MedituneError(
                f"{certificate} contains no TLS certificate. Set --certificate to the PEM file of a certificate chain."
            ) from error
        try:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise MedituneError(
                f"{key or certificate} contains no private key that fits the certificate {certificate}, or the key is "
                "encrypted. Set --private-key to the PEM file of the certificate's private key."
            ) from error


def refuse_uninstalled(mcp: bool = False) -> None:
    """Raise ModelError, with the install command, if a package for serving (or with `mcp`, for MCP) is missing."""
    if find_spec("prometheus_client") is None:
        raise ModelError(f"Serving needs prometheus-client. Install it with: {install_command('serve')}")
    if mcp and find_spec("mcp") is None:
        raise ModelError(f"Serving tools over MCP needs the package mcp. Install it with: {install_command('mcp')}")


def listening(config: ListenConfig) -> socket.socket:
    """Return a socket that listens at the configured address. Raises MedituneError if that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except UnicodeError as error:
        raise MedituneError(f"--host {config.host}: this isn't a host name or an address.") from error
    except OSError as error:
        raise MedituneError(
            f"Can't listen on {config.host}:{config.port} ({error.strerror}). Choose another --host or --port; "
            "--port 0 chooses a free port."
        ) from error
    return listener


def server_of(service: Service, config: ListenConfig, extend: Extend | None = None) -> uvicorn.Server:
    """Return a uvicorn server with limits for the service's application, to which `extend` may add routes."""
    import uvicorn

    from meditune.serve.app import app_for

    settings, app = service.settings, app_for(service)
    if extend:
        extend(app)

    class Server(uvicorn.Server):
        """A server that also limits the time for TLS handshakes, for which uvicorn has no option."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            loop = asyncio.get_running_loop()
            if config.certificate:
                limited = partial(loop.create_server, ssl_handshake_timeout=settings.header_s)
                loop.create_server = limited  # type: ignore[method-assign]
            await super().startup(sockets)

    return Server(
        uvicorn.Config(
            app,
            http=protocol(settings),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(config.proxies),
            forwarded_allow_ips=config.trusted_proxies(),
            timeout_keep_alive=int(settings.idle_s),
            timeout_graceful_shutdown=int(settings.ending_s),
            h11_max_incomplete_event_size=settings.header_bytes,
            ssl_certfile=config.certificate,
            ssl_keyfile=config.private_key,
        )
    )


def run(
    service: Service,
    config: ListenConfig,
    sock: socket.socket,
    ready: Callable[[str], None],
    extend: Extend | None = None,
) -> None:
    """Serve until a signal stops the process; then refuse new requests, and finish the running answers.

    `ready` is called with the address as soon as the server accepts requests. Raises EngineUnavailableError if the
    model's engine has stopped and can't be restarted; the process exits with that error's exit code.
    """
    sys.setswitchinterval(SWITCH_S)
    server = server_of(service, config, extend)
    address = service.address = config.address(sock.getsockname()[1])
    threading.Thread(target=_watch, args=(server, service, lambda: ready(address)), name="engine", daemon=True).start()
    # After its shutdown, uvicorn raises the signal that stopped it once more; here, that isn't an interruption.
    with suppress(Stopped):
        server.run(sockets=[sock])
    if (failure := _given_up(service)) is not None:
        raise failure


def _watch(server: uvicorn.Server, service: Service, ready: Callable[[], None]) -> None:
    """Call `ready` when the server accepts requests, and stop the server when its engine can't be restarted.

    If a stuck thread keeps the process alive, the process is killed.
    """
    told = False
    while (failure := _given_up(service)) is None:
        if server.should_exit:
            return
        if server.started and not told:
            told = True
            ready()
        time.sleep(ENGINE_CHECK_S if told else 0.01)
    # No client is still waiting for a model's answer: every client has received an error.
    server.config.timeout_graceful_shutdown = GRACEFUL_SHUTDOWN_S
    server.should_exit = True
    time.sleep(FORCED_SHUTDOWN_S)
    LOGGER.critical("the process is killed, because it didn't stop in time", extra={"why": str(failure)})
    os._exit(failure.exit_code)


def _given_up(service: Service) -> EngineUnavailableError | None:
    """Return why the engine can't be restarted; None while the engine is alive or being restarted."""
    failure = service.engine.failure()
    return failure if isinstance(failure, EngineUnavailableError) and failure.given_up else None


USER_TIMEOUT_MS = 60_000
SEND_BYTES = 128 << 10
"""The size of a connection's send buffer; by default, the system buffers megabytes for a client that doesn't read"""


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol class with these limits."""
    idle: dict[Connection, None] = {}
    """The connections that are waiting for a request's head, in the order in which they began to wait"""

    class Connection(H11Protocol):
        """One HTTP connection."""

        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Accept the connection. If too many are open, close the one that has been idle longest.

            Clients that open connections and send nothing therefore can't keep others out. If no connection is idle,
            the new one is refused.
            """
            super().connection_made(transport)
            _keep_short(transport)
            if len(self.connections) > settings.connections:
                if not idle:
                    self._refuse(503, "Too many connections.", "overloaded")
                    return
                next(iter(idle))._make_room()
            idle[self] = None
            # Clients may connect before they have a request, or be too busy to send it at once.
            self.timeout_keep_alive_task = self.loop.call_later(settings.idle_s, self.timeout_keep_alive_handler)

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop the connection's timer."""
            idle.pop(self, None)
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Pass the data to the parser, and limit the time until a request head is complete."""
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
                self._expect_head()
            else:
                idle.pop(self, None)
                self._stop_timer()

        def on_response_complete(self) -> None:
            """Limit the time for the rest of the body, or for the next head if a part of it has already arrived."""
            super().on_response_complete()
            if self.transport.is_closing():
                return
            if self.conn.their_state in {h11.IDLE, h11.SEND_BODY}:
                idle[self] = None
            if self.conn.trailing_data[0] or self.conn.our_state is h11.DONE:
                self._expect_head()

        def send_400_response(self, _: str) -> None:
            """Refuse a request that can't be parsed, or whose head is too large."""
            if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                self.transport.close()
                return
            if len(self.conn.trailing_data[0]) >= settings.header_bytes:
                message = f"The request's head is larger than {settings.header_bytes:,} bytes."
                self._refuse(431, message, "head_too_large")
            else:
                self._refuse(400, "This isn't a valid HTTP request.", "invalid_http")

        def timeout_keep_alive_handler(self) -> None:
            """Close the connection, because it has been idle too long."""
            had_request: bool = self.cycle is not None
            if had_request:
                super().timeout_keep_alive_handler()
            elif not self.transport.is_closing():
                self._refuse(408, "No request arrived in time.", "timeout")

        def _make_room(self) -> None:
            """Close this connection, because too many are open."""
            idle.pop(self, None)
            if self.cycle is None or self._head_timer is not None:
                self._refuse(503, "Too many connections.", "overloaded")
            else:
                # Between two requests of a client, a response would belong to neither.
                self.transport.close()

        def _expect_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(settings.header_s, self._head_too_slow)

        def _head_too_slow(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self._refuse(408, "The request's head didn't arrive in time.", "timeout")

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _refuse(self, status: int, message: str, code: str) -> None:
            """Send an error without involving the application, and close the connection."""
            self._stop_timer()
            if self.conn.our_state is h11.DONE:
                # The request has already had its response; only its body isn't complete.
                self.transport.close()
                return
            LOGGER.info("connection refused", extra={"status": status, "why": code})
            body = json.dumps(ApiError(status, message, code).as_dict()).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return Connection


def _keep_short(transport: asyncio.Transport) -> None:
    """Limit the send buffer, and let the system detect clients that vanished without closing the connection."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
