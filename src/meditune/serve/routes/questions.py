"""`POST /v1/ask`: a question in, an answer with citations, decision and safety notes out.

`POST /v1/feedback`, and deleting what was kept of an answer.
"""

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

from meditune.assistant.triage import Triage
from meditune.phi.detector import mask
from meditune.serve import moderation, version_router
from meditune.serve.answer_log import log_answer
from meditune.serve.api_errors import SCOPE_KEY, ApiError, Trace
from meditune.serve.auth import Caller, allowed
from meditune.serve.metrics import count_answer, facts_of, outcome_of
from meditune.serve.schema import AskBody, Asked, Deleted, FeedbackBody, Thanks, errors, streams
from meditune.serve.service import AnswersQuestions, Event, Service
from meditune.serve.store_access import run_in_store_thread
from meditune.serve.streaming import EventStream, GeneratedText, cancel_on_disconnect, event, wait_for_turn
from meditune.serve.version_router import conversation_of, route_request
from meditune.store.answers import Answers, Feedback
from meditune.store.api_keys import Scope

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
    service = route_request(request, conversation)
    if service.assistant is None:
        raise ApiError(404, "This server answers chats only: it was started without an assistant.", "not_found")
    past = [each.question for each in body.history]
    length = sum(len(each.question) + len(each.answer) for each in body.history)
    asked = moderation.ChatQuestion(body.question, past, "question", history=length)
    found = await moderation.triage_request(request, service, service.assistant, caller, asked)
    asking = _Asking(service, service.assistant, body, caller, request.scope[SCOPE_KEY], conversation, found)
    if body.stream:
        return EventStream(asking.events, kind="error")
    return await cancel_on_disconnect(request, asking.at_once())


class _Asking:
    """One question on its way."""

    def __init__(
        self,
        service: Service,
        assistant: AnswersQuestions,
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
        place = (
            nullcontext(GeneratedText())
            if urgent
            else wait_for_turn(self.service, self.caller, self.trace, needs_engine)
        )
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
        await log_answer(self.service, self.caller, self.id, "ask", self.body.question, text, outcome, facts)
        if outcome in ("answered", "abstained"):
            version_router.ask(self.service, self.conversation, self.caller, self.id, self.body, self.found)

    async def _from_thread(self, count: GeneratedText, threads: Executor | None) -> AsyncGenerator[Event, None]:
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


@router.post("/v1/feedback", responses=errors(404), summary="Say what you think of an answer")
async def feedback(
    body: FeedbackBody, request: Request, caller: Annotated[Caller, Depends(allowed("feedback"))]
) -> Thanks:
    """Keep it with the answer, and so with the versions that gave it; sent again, it takes the earlier one's place.

    It is on the disk when this returns. A key with the scope expert may judge anybody's answers, and overrides others.
    """
    service: Service = request.app.state.service
    service.access.says(request, caller)
    # Without keys everybody has all scopes, and nobody is known to be an expert.
    expert = bool(caller.key) and "expert" in caller.scopes
    answers = await _answers_of(service, body.id, caller, "expert")
    said = Feedback(
        body.id, caller.key, body.rating, body.reasons, body.comment, body.correction, body.decision or "", expert
    )
    if not await run_in_store_thread(answers.say, said):
        raise _unknown()
    service.metrics.feedback.labels(body.rating).inc()
    if body.correction or body.decision:
        service.metrics.corrections.labels("expert" if expert else "user").inc()
    return Thanks(id=body.id)


@router.delete("/v1/answers/{id}", responses=errors(404), summary="Delete what was kept of an answer")
async def delete(id: str, request: Request, caller: Annotated[Caller, Depends(allowed("feedback"))]) -> Deleted:
    """Take an answer and all that was said of it out of the store; for the key that asked, or one with scope admin."""
    answers = await _answers_of(request.app.state.service, id, caller, "admin")
    if not await run_in_store_thread(answers.delete, id):
        raise _unknown()
    return Deleted(id=id)


async def _answers_of(service: Service, id: str, caller: Caller, scope: Scope) -> Answers:
    """The store, where the answer of that id is in it and the caller's, or anybody's for that scope.

    Raises ApiError 404.
    """
    if service.answers is None:
        raise ApiError(404, "This server keeps no answers, so there is nothing to say of them.", "not_found")
    found = await asyncio.to_thread(service.answers.get, id)
    if found is None or (found.who != caller.key and not caller.scopes & {scope, "admin"}):
        raise _unknown()
    return service.answers


def _unknown() -> ApiError:
    return ApiError(
        404, "There is no such answer: it was never given, deleted, or is another key's.", "not_found", "id"
    )
