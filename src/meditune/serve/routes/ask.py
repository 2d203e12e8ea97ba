"""`POST /v1/ask`: a question in, an answer with citations, decision and safety notes out."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing, nullcontext
from contextvars import copy_context
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from meditune.phi.masking import mask
from meditune.serve import moderation, shadowing
from meditune.serve.access import Caller, allowed
from meditune.serve.chosen import chosen, conversation_of
from meditune.serve.errors import ApiError
from meditune.serve.kept import keep
from meditune.serve.outcomes import count_answer, facts_of, outcome_of
from meditune.serve.routes.documented import errors, streams
from meditune.serve.safety.triage import Triage
from meditune.serve.schema.ask import AskBody, Asked
from meditune.serve.service import Asks, Event, Service
from meditune.serve.streaming import EventStream, event, while_there
from meditune.serve.trace import SCOPE_KEY, Trace
from meditune.serve.writing import Written, turn

router = APIRouter(tags=["Assistant"])


@router.post(
    "/v1/ask",
    response_model=Asked,
    responses={**streams("The answer, or events on the way to it."), **errors(404, 504)},
    summary="Ask a question about health",
)
async def ask(body: AskBody, request: Request, caller: Annotated[Caller, Depends(allowed("generate"))]) -> Any:
    """An answer that rests on sources and names them, or an honest refusal."""
    conversation = conversation_of(caller, body.history[0].question if body.history else body.question)
    service = chosen(request, conversation)
    if service.assistant is None:
        raise ApiError(404, "This server answers chats only: it was started without an assistant.", "not_found")
    past = [each.question for each in body.history]
    length = sum(len(each.question) + len(each.answer) for each in body.history)
    asked = moderation.Asked(body.question, past, "question", history=length)
    found = await moderation.judged(request, service, service.assistant, caller, asked)
    asking = _Asking(service, service.assistant, body, caller, request.scope[SCOPE_KEY], conversation, found)
    if body.stream:
        return EventStream(asking.events, kind="error")
    return await while_there(request, asking.at_once())


class _Asking:
    """One question on its way."""

    def __init__(
        self,
        service: Service,
        assistant: Asks,
        body: AskBody,
        caller: Caller,
        trace: Trace,
        conversation: str,
        found: Triage,
    ) -> None:
        """`found` is what triage says of the question."""
        self.service, self.assistant, self.body, self.caller, self.trace = service, assistant, body, caller, trace
        self.conversation, self.found = conversation, found
        self.id = f"ask-{secrets.token_hex(12)}"
        if service.settings.log_text:
            trace.facts["question"] = mask(body.question)

    async def at_once(self) -> dict[str, Any]:
        """The answer alone."""
        answer: dict[str, Any] = {}
        async with aclosing(self._told()) as coming:
            async for kind, said in coming:
                if kind == "answer":
                    answer = said
        return answer

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Everything that the assistant tells, as it comes."""
        async with aclosing(self._told()) as coming:
            async for kind, said in coming:
                yield event(said, kind)

    async def _told(self) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Kind and content of each event; the answer is kept before it is told."""
        # Urgent help needs no engine, so it waits for none.
        urgent = self.found.action == "urgent"
        needs_engine = self.found.action != "decline"
        place = nullcontext(Written()) if urgent else turn(self.service, self.caller, self.trace, needs_engine)
        async with place as count, aclosing(self._from_thread(count, None if urgent else self.service.asks)) as coming:
            async for each in coming:
                said = each.as_dict()
                if each.kind == "answer":
                    said = {"id": self.id} | said
                    await self._keep(said)
                yield each.kind, said

    async def _keep(self, said: dict[str, Any]) -> None:
        count_answer(self.service.metrics, said)
        outcome, facts = outcome_of(said), facts_of(said)
        self.trace.facts["outcome"] = outcome
        text = str(said.get("text", ""))
        await keep(self.service, self.caller, self.id, "ask", self.body.question, text, outcome, facts)
        if outcome in ("answered", "abstained"):
            shadowing.ask(self.service, self.conversation, self.caller, self.id, self.body, self.found)

    async def _from_thread(self, count: Written, threads: Executor | None) -> AsyncGenerator[Event, None]:
        """The assistant's events, with its tokens in `count`; it works in one of these threads (None: the loop's), and
        is told when nobody listens any more.
        """
        loop = asyncio.get_running_loop()
        came: asyncio.Queue[Event | None] = asyncio.Queue()
        left = threading.Event()

        def work() -> None:
            for each in self.assistant.ask(
                self.body.question,
                style=self.body.style,
                k=self.body.k,
                sources=self.body.sources,
                history=[(past.question, past.answer) for past in self.body.history],
                max_new_tokens=self.body.max_new_tokens,
                cancelled=left.is_set,
                found=self.found,
            ):
                if each.kind == "answer":
                    used = each.as_dict().get("tokens") or {}
                    count.prompt_tokens, count.tokens = used.get("prompt", 0), used.get("completion", 0)
                loop.call_soon_threadsafe(came.put_nowait, each)

        # The thread goes on with the request's trace.
        worker = loop.run_in_executor(threads, copy_context().run, work)
        worker.add_done_callback(lambda _: came.put_nowait(None))
        try:
            while (each := await came.get()) is not None:
                yield each
            worker.result()
        finally:
            left.set()
            # The place in the engine is free when the work has really ended.
            await asyncio.wait({worker})
            if not worker.cancelled():
                worker.exception()
