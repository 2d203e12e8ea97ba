"""Answers of a version that is tried unseen: made beside those that are told, kept, and shown to nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from meditune.engines.engine import Job
from meditune.errors import MedituneError
from meditune.serve.access import Caller
from meditune.serve.logs import LOGGER, where
from meditune.serve.outcomes import facts_of, outcome_of
from meditune.serve.releases import Live
from meditune.serve.safety.triage import Triage
from meditune.serve.schema.ask import AskBody
from meditune.serve.service import Service
from meditune.serve.storing import stored
from meditune.serve.streaming import pieces
from meditune.store.answers import SHADOW, Answer

_running: set[asyncio.Task[None]] = set()
Told = tuple[str, str, Mapping[str, Any]]
"""Outcome, text, facts"""


def ask(service: Service, conversation: str, caller: Caller, id: str, body: AskBody, found: Triage) -> None:
    """Let the shadow answer a question that was judged, if there is a shadow and the server has room for it."""

    async def told(live: Live) -> Told:
        assistant = live.service.assistant
        assert assistant is not None, "the route has one"
        over = threading.Event()

        def work() -> dict[str, Any]:
            events = assistant.ask(
                body.question,
                style=body.style,
                k=body.k,
                sources=body.sources,
                history=[(past.question, past.answer) for past in body.history],
                max_new_tokens=body.max_new_tokens,
                cancelled=over.is_set,
                found=found,
            )
            return [each.as_dict() for each in events][-1]

        worker = asyncio.get_running_loop().run_in_executor(service.asks, work)
        try:
            said = await asyncio.shield(worker)
        finally:
            over.set()
            # The place is free when the work has really ended.
            await asyncio.wait({worker})
            if not worker.cancelled():
                worker.exception()
        return outcome_of(said), str(said.get("text", "")), facts_of(said)

    _start(service, conversation, caller, id, body.question, told)


def chat(
    service: Service, conversation: str, caller: Caller, id: str, question: str, job: Callable[[Service], Job]
) -> None:
    """Let the shadow go on with a chat; `job` makes what its engine is to do."""

    async def told(live: Live) -> Told:
        made, text, tokens = await asyncio.to_thread(job, live.service), "", 0
        async with aclosing(pieces(live.service.engine, made)) as coming:
            async for piece in coming:
                text, tokens = text + piece.text, tokens + len(piece.tokens)
        return "answered", text.lstrip(), {"prompt_tokens": len(made.prompt), "completion_tokens": tokens}

    _start(service, conversation, caller, id, question, told)


def _start(
    service: Service, conversation: str, caller: Caller, id: str, question: str, told: Callable[[Live], Any]
) -> None:
    live = service.releases.shadow(conversation) if service.releases else None
    if live is None:
        return
    task = asyncio.ensure_future(_in_spare_place(service, live, caller, id, question, told))
    _running.add(task)
    task.add_done_callback(_running.discard)


async def _in_spare_place(
    service: Service, live: Live, caller: Caller, id: str, question: str, told: Callable[[Live], Any]
) -> None:
    """Let the shadow answer if a place is free that nobody waits for: who asks comes first."""
    releases = service.releases
    assert releases is not None, "there is a shadow"
    assert releases.service is not None, "it answers"
    failed: bool | None = None
    try:
        with service.admission.spare(1) as place:
            if place:
                failed = True
                failed = await _fails(service, live, caller, id, question, told)
    finally:
        # A server that ends breaks shadows off, which is no fault of theirs.
        releases.leave(live, failed if releases.service.ready else None)


async def _fails(
    service: Service, live: Live, caller: Caller, id: str, question: str, told: Callable[[Live], Any]
) -> bool:
    """Keep what the shadow says; whether it failed, which counts against it alone."""
    failed = True
    try:
        async with asyncio.timeout(service.settings.answer_s):
            outcome, text, facts = await told(live)
        failed = False
        served, with_text = live.service.served, service.settings.keep_text
        if service.answers is not None:
            row = Answer(
                f"{id}-shadow",
                caller.key,
                SHADOW,
                f"{served.name} {served.version}",
                served.index,
                outcome,
                {**facts, "beside": id},
                question if with_text else None,
                text if with_text else None,
            )
            await stored(service.answers.keep, row)
    except (MedituneError, TimeoutError, RuntimeError, OSError) as error:
        LOGGER.warning("a shadow's answer failed", extra={"version": live.id, **where(error)})
    return failed
