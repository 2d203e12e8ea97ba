"""A job from its place in the queue to its last piece, counted and timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from meditune.engines.engine import Finish, Job, Likely, Piece
from meditune.errors import EngineUnavailableError, StoreError
from meditune.serve.access import Caller
from meditune.serve.errors import ApiError
from meditune.serve.kept import METRICS_S
from meditune.serve.logs import LOGGER, where
from meditune.serve.service import Service
from meditune.serve.streaming import pieces
from meditune.serve.trace import Trace
from meditune.serve.tracing import span


@dataclass
class Written:
    """What an engine wrote."""

    prompt_tokens: int = 0
    text: str = ""
    tokens: int = 0
    likely: list[Likely] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish: Finish = "stop"


@asynccontextmanager
async def turn(service: Service, caller: Caller, trace: Trace, needs_engine: bool = True) -> AsyncIterator[Written]:
    """A place in the engine for the block, whose time is limited; what is noted in the result is counted.

    Raises ApiError 429 where there is no place, EngineUnavailableError where there is no engine, TimeoutError where the
    block takes too long.
    """
    written, entered = Written(), False
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
    finally:
        # Who leaves early has used what was written until then; leaving again doesn't stop the counting.
        if entered:
            await asyncio.shield(_count(service, caller, written.prompt_tokens + written.tokens))


async def _count(service: Service, caller: Caller, tokens: int) -> None:
    """Add to the caller's usage. Raises StoreError where that fails and the caller has a quota, which must hold."""
    try:
        async with asyncio.timeout(None if caller.daily_tokens else METRICS_S):
            await service.access.used(caller, tokens)
    except (StoreError, TimeoutError) as error:
        service.metrics.store_failures.inc()
        if caller.daily_tokens:
            raise
        LOGGER.error("usage wasn't counted", extra=where(error))


def _refuse_without_engine(service: Service) -> None:
    """Raise EngineUnavailableError while the engine is dead: before the queue, and before anything is told."""
    failure = service.engine.failure()
    if isinstance(failure, EngineUnavailableError):
        raise failure


async def written_pieces(service: Service, job: Job, into: Written, trace: Trace) -> AsyncGenerator[Piece, None]:
    """A job's pieces, which are added up in `into`. Raises ApiError 503 where the engine broke the job off."""
    begun = time.monotonic()
    into.prompt_tokens += len(job.prompt)
    first = True
    with span("generate") as made:
        made.set_attribute("meditune.prompt_tokens", len(job.prompt))
        async with aclosing(pieces(service.engine, job)) as coming:
            async for piece in coming:
                if first:
                    first = False
                    seconds = time.monotonic() - begun
                    service.metrics.first_token.observe(seconds)
                    trace.facts.setdefault("first_token", round(seconds, 4))
                service.metrics.cached.inc(piece.cached)
                into.text += piece.text
                into.tokens += len(piece.tokens)
                into.ids += piece.tokens
                into.likely += piece.likely
                into.finish = piece.finish or into.finish
                yield piece
                if piece.finish == "cancelled":
                    raise ApiError(503, "The server broke the answer off. Ask again.", "broken_off")


async def whole(service: Service, job: Job, into: Written, trace: Trace) -> Written:
    """The job's answer, `into` being where it is counted too; the result is this job's alone."""
    alone = Written()
    try:
        async with aclosing(written_pieces(service, job, alone, trace)) as coming:
            async for _ in coming:
                pass
    finally:
        into.prompt_tokens += alone.prompt_tokens
        into.tokens += alone.tokens
    return alone
