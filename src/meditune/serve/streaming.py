"""Answers as they come: a job's pieces in the event loop, responses that end when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from meditune.engines.engine import Engine, Job, Piece
from meditune.errors import MedituneError
from meditune.serve.errors import ApiError, ClientGone, refused
from meditune.serve.logs import LOGGER
from meditune.serve.trace import SCOPE_KEY

Result = TypeVar("Result")
HEARTBEAT_S = 15.0


async def pieces(engine: Engine, job: Job) -> AsyncGenerator[Piece, None]:
    """What the engine delivers; the job is cancelled where the reader leaves. Raises what broke the job off."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[Piece] = asyncio.Queue()

    def deliver(piece: Piece) -> None:
        # The loop may have ended while the engine still finishes a step.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(came.put_nowait, piece)

    running = engine.start(job, deliver)
    try:
        while True:
            piece = await came.get()
            if piece.error is not None:
                raise piece.error
            yield piece
            if piece.finish is not None:
                return
    finally:
        running.cancel()


async def while_there(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves. Raises ClientGone then."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def event(data: Any, kind: str | None = None) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"{f'event: {kind}' + chr(10) if kind else ''}data: {text}\n\n".encode()


class EventStream(Response):
    """Server-sent events that a generator makes.

    The first event is waited for before anything is sent, so a refusal still has its status; what goes wrong later is
    an event of its own. When the client leaves, the generator is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(self, make: Callable[[], AsyncGenerator[bytes, None]], kind: str | None = None) -> None:
        """`kind` names the event that tells an error."""
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._make, self._kind = make, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, or as much as the client stays for."""
        sending = asyncio.ensure_future(self._send_all(scope, receive, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientGone
            sending.result()
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await sending

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def out(data: bytes, more: bool = True) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        came: asyncio.Queue[bytes | None] = asyncio.Queue()
        making = asyncio.ensure_future(self._collect(came))
        making.add_done_callback(lambda _: came.put_nowait(None))
        try:
            while True:
                try:
                    # Not wait_for, which in Python 3.11 can lose the cancelling of a client that left.
                    async with asyncio.timeout(HEARTBEAT_S if begun else None):
                        data = await came.get()
                except TimeoutError:
                    data = b": still there\n\n"
                if data is None:
                    break
                await out(data)
            making.result()
        except Exception as error:
            if isinstance(error, ClientGone):
                raise
            told = as_api_error(error)
            scope[SCOPE_KEY].broke(error)
            if not begun:
                await told.response()(scope, receive, send)
                return
            scope[SCOPE_KEY].broken = told.status
            await out(event(told.as_dict(), self._kind))
        finally:
            making.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await making
        await out(b"", more=False)

    async def _collect(self, came: asyncio.Queue[bytes | None]) -> None:
        """Everything that the generator makes. It stays in one task, which is what times it out."""
        async with aclosing(self._make()) as events:
            async for data in events:
                came.put_nowait(data)


def as_api_error(error: Exception) -> ApiError:
    """What the client is told of any error; one that wasn't foreseen is logged with its places."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TimeoutError):
        return ApiError(504, "The answer took too long and was broken off. Ask for a shorter one.", "timeout")
    if isinstance(error, MedituneError):
        return refused(error)
    LOGGER.error("An answer failed", exc_info=error)
    return ApiError(500, "The server failed at this request. Its log says where.", "server_error")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
