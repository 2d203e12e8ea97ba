"""Answers of a version that is tried unseen: made beside those that are told, kept, and shown to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from meditune.engines.engine import Job
from meditune.errors import MedituneError
from meditune.serve.access import Caller
from meditune.serve.logs import LOGGER, where
from meditune.serve.outcomes import facts_of, outcome_of
from meditune.serve.releases import Live
from meditune.serve.schema.ask import AskBody
from meditune.serve.service import Service
from meditune.serve.storing import stored
from meditune.serve.streaming import pieces
from meditune.store.answers import SHADOW, Answer

_running: set[asyncio.Task[None]] = set()
Told = tuple[str, str, Mapping[str, Any]]
"""Outcome, text, facts"""


def ask(service: Service, conversation: str, caller: Caller, id: str, body: AskBody) -> None:
    """Let the shadow answer a question, if there is one and the server has room for it."""

    async def told(live: Live) -> Told:
        assistant = live.service.assistant
        assert assistant is not None, "the route has one"

        def work() -> dict[str, Any]:
            events = assistant.ask(
                body.question,
                style=body.style,
                k=body.k,
                sources=body.sources,
                history=[(past.question, past.answer) for past in body.history],
                max_new_tokens=body.max_new_tokens,
                cancelled=lambda: not service.ready,
            )
            return [each.as_dict() for each in events][-1]

        said = await asyncio.get_running_loop().run_in_executor(service.asks, work)
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
    releases = service.releases
    if releases is None or service.admission.waiting or service.admission.inside >= service.settings.at_once:
        return  # who asks comes first
    live = releases.shadow(conversation)
    if live is None:
        return
    task = asyncio.ensure_future(_answered(service, live, caller, id, question, told))
    _running.add(task)
    task.add_done_callback(_running.discard)


async def _answered(
    service: Service, live: Live, caller: Caller, id: str, question: str, told: Callable[[Live], Any]
) -> None:
    """Keep what the shadow says; that it fails counts against it alone."""
    assert service.releases is not None, "there is a shadow"
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
    finally:
        service.releases.leave(live, failed)
