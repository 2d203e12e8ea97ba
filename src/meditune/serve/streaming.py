"""Streaming: an engine's output in the event loop, server-sent events, and responses that end when the client leaves.

`wait_for_turn` and `generate_chunks` take a generation from the queue to its last chunk, count its tokens and measure
its timings.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from meditune.engines.engine import Finish, GenerationChunk, GenerationRequest, RunningGeneration, TokenLogprob
from meditune.errors import EngineUnavailableError, StoreError
from meditune.observability import LOGGER, error_location, span
from meditune.serve.api_errors import SCOPE_KEY, ApiError, ClientDisconnected, Trace, as_api_error, timed_out
from meditune.serve.auth import Caller
from meditune.serve.service import METRICS_S, Service

Result = TypeVar("Result")
HEARTBEAT_S = 15.0


async def cancel_on_disconnect(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of `work`. If the client disconnects first, cancel `work` and raise ClientDisconnected."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def event(data: Any, kind: str | None = None) -> bytes:
    """Return a server-sent event as bytes; `kind` is its event name."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"{f'event: {kind}' + chr(10) if kind else ''}data: {text}\n\n".encode()


class EventStream(Response):
    """A response that streams the server-sent events of a generator.

    The headers are sent with the first event, so an error before the first event still has its own status. A later
    error is sent as an event. When the client disconnects, the generator is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(self, make: Callable[[], AsyncGenerator[bytes, None]], kind: str | None = None) -> None:
        """Create the response. `kind` is the name of error events."""
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._make, self._kind = make, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, unless the client disconnects before the end."""
        await cancel_on_disconnect(receive, self._send_all(scope, receive, send))

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def out(data: bytes, more: bool = True) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        queue: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def collect() -> None:
            # The generator runs in a single task, so that its timeouts cancel the right task.
            async with aclosing(self._make()) as events:
                async for data in events:
                    queue.put_nowait(data)

        making = asyncio.ensure_future(collect())
        making.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while True:
                try:
                    # Not wait_for: in Python 3.11 it can swallow the cancellation after a client has disconnected.
                    async with asyncio.timeout(HEARTBEAT_S if begun else None):
                        data = await queue.get()
                except TimeoutError:
                    data = b": still there\n\n"
                if data is None:
                    break
                await out(data)
            making.result()
        except Exception as error:
            if isinstance(error, ClientDisconnected):
                raise
            failure = as_api_error(error, scope[SCOPE_KEY])
            if not begun:
                await failure.response()(scope, receive, send)
                return
            scope[SCOPE_KEY].stream_status = failure.status
            # The response's status is 200, so the event says which status the error would have.
            content = failure.as_dict()["error"] | {"status": failure.status}
            await out(event({"error": content}, self._kind))
        finally:
            making.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await making
        await out(b"", more=False)


@dataclass
class GeneratedText:
    """The text and tokens that an engine generated."""

    prompt_tokens: int = 0
    text: str = ""
    tokens: int = 0
    likely: list[TokenLogprob] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish: Finish = "stop"


@asynccontextmanager
async def wait_for_turn(
    service: Service, caller: Caller, trace: Trace, needs_engine: bool = True
) -> AsyncIterator[GeneratedText]:
    """Wait for a place in the engine, hold it during the block, and count the tokens that the block adds to the text.

    Raises ApiError 429 if no place becomes free in time, EngineUnavailableError if the engine is dead, and ApiError 504
    if the block takes longer than `answer_s`.
    """
    written, entered = GeneratedText(), False
    if needs_engine:
        _refuse_without_engine(service)
    try:
        async with service.admission.place(caller.name) as waited:
            if needs_engine:
                _refuse_without_engine(service)
            entered = True
            service.metrics.wait.observe(waited)
            trace.facts["waited"] = round(waited, 4)
            try:
                async with asyncio.timeout(service.settings.answer_s):
                    yield written
            finally:
                trace.facts |= {"prompt_tokens": written.prompt_tokens, "completion_tokens": written.tokens}
                service.metrics.count_tokens(written.prompt_tokens, written.tokens)
    except TimeoutError:
        raise timed_out(service.admission.retry_s()) from None
    finally:
        # A client that disconnects early has used the tokens generated so far. `shield` keeps the counting from being
        # cancelled.
        if entered:
            await asyncio.shield(_count(service, caller, written.prompt_tokens + written.tokens))


async def _count(service: Service, caller: Caller, tokens: int) -> None:
    """Add tokens to the caller's usage. Raises StoreError if that fails and the caller has a quota."""
    try:
        async with asyncio.timeout(None if caller.daily_tokens else METRICS_S):
            await service.access.add_usage(caller, tokens)
    except (StoreError, TimeoutError) as error:
        service.metrics.store_failures.inc()
        if caller.daily_tokens:
            raise
        LOGGER.error("usage wasn't counted", extra=error_location(error))


def _refuse_without_engine(service: Service) -> None:
    """Raise EngineUnavailableError if the engine is dead, before the request waits or the client gets anything."""
    failure = service.engine.failure()
    if isinstance(failure, EngineUnavailableError):
        raise failure


async def _start(
    service: Service, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]
) -> RunningGeneration:
    """Start a generation. If it has a JSON schema, use another thread, because compiling the schema takes a while."""
    if request.json_schema is None:
        return service.engine.start(request, deliver)
    starting = service.asks.submit(service.engine.start, request, deliver)
    try:
        return await asyncio.wrap_future(starting)
    except asyncio.CancelledError:
        # Nobody waits for the answer any more, but a thread that compiles a schema can't be interrupted.
        starting.add_done_callback(_cancel_started)
        raise


def _cancel_started(starting: Future[RunningGeneration]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().cancel()


async def generate_chunks(
    service: Service, request: GenerationRequest, into: GeneratedText, trace: Trace
) -> AsyncGenerator[GenerationChunk, None]:
    """Yield the chunks of a generation and add them to `into`. If the caller stops reading, cancel the generation.

    Raises the engine's error, and ApiError 503 if the engine aborted the generation.
    """
    loop, begun = asyncio.get_running_loop(), time.monotonic()
    chunks: asyncio.Queue[GenerationChunk] = asyncio.Queue()

    def deliver(chunk: GenerationChunk) -> None:
        # The event loop may have ended while the engine is still finishing a step.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    into.prompt_tokens += len(request.prompt)
    first = True
    with span("generate") as trace_span:
        trace_span.set_attribute("meditune.prompt_tokens", len(request.prompt))
        running = await _start(service, request, deliver)
        try:
            while True:
                chunk = await chunks.get()
                if chunk.error is not None:
                    raise chunk.error
                if first:
                    first = False
                    seconds = time.monotonic() - begun
                    service.metrics.first_token.observe(seconds)
                    trace.facts.setdefault("first_token", round(seconds, 4))
                service.metrics.cached.inc(chunk.cached)
                into.text += chunk.text
                into.tokens += len(chunk.tokens)
                into.ids += chunk.tokens
                into.likely += chunk.likely
                into.finish = chunk.finish or into.finish
                if chunk.finish == "cancelled":
                    raise ApiError(503, "The server stopped the answer before its end. Ask again.", "broken_off")
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            running.cancel()


async def generate_whole(
    service: Service, request: GenerationRequest, into: GeneratedText, trace: Trace
) -> GeneratedText:
    """Return the complete output of this request. Its token counts are also added to `into`."""
    alone = GeneratedText()
    try:
        async with aclosing(generate_chunks(service, request, alone, trace)) as chunks:
            async for _ in chunks:
                pass
    finally:
        into.prompt_tokens += alone.prompt_tokens
        into.tokens += alone.tokens
    return alone
