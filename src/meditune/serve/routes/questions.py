"""The assistant's routes: `POST /v1/ask`, `POST /v1/search`, `POST /v1/feedback` and `DELETE /v1/answers/{id}`."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from meditune.assistant.assistant import Assistant
from meditune.assistant.events import Event
from meditune.assistant.triage import Triage
from meditune.phi.detector import mask
from meditune.serve import moderation
from meditune.serve.api_errors import SCOPE_KEY, ApiError, Trace
from meditune.serve.auth import Caller, allowed
from meditune.serve.metrics import count_answer, facts_of
from meditune.serve.schema import (
    MAX_EARLIER,
    AskBody,
    Asked,
    Deleted,
    FeedbackBody,
    Found,
    SearchBody,
    Thanks,
    errors,
    streams,
)
from meditune.serve.service import Service
from meditune.serve.store_access import run_in_store_thread
from meditune.serve.streaming import EventStream, GeneratedText, cancel_on_disconnect, event, wait_for_turn
from meditune.serve.version_router import route_request
from meditune.store.answers import Answers, Feedback
from meditune.store.api_keys import Scope

router = APIRouter(tags=["Assistant"])
FOR_OTHER_MODELS = "meditune.for_other_models"
"""Key in the ASGI scope of requests whose passages are sent to the model of another program"""


@router.post(
    "/v1/ask",
    response_model=Asked,
    responses={**streams("The answer, or all events up to the answer."), **errors(404, 504)},
    summary="Ask a question about health",
)
async def ask(body: AskBody, request: Request, caller: Annotated[Caller, Depends(allowed("generate"))]) -> Any:
    """Return an answer that is based on sources and cites them, or the reason why there is no answer."""
    first = body.history[0].question if body.history else body.question
    service = route_request(request, caller, first)
    if service.assistant is None:
        raise ApiError(404, "This server has no assistant, so it answers only chats.", "not_found")
    past = [each.question for each in body.history]
    length = sum(len(each.question) + len(each.answer) for each in body.history)
    asked = moderation.ChatQuestion(body.question, past, "question", history=length)
    found = await moderation.triage_request(request, service, service.assistant, caller, asked)
    if found.action not in ("urgent", "decline"):
        moderation.refuse_many(body.history, MAX_EARLIER, "history")
        body.sources = _sources_to_search(request, service.assistant, body.sources)
    trace: Trace = request.scope[SCOPE_KEY]
    if service.settings.log_text:
        trace.facts["question"] = mask(body.question)
    run = _AnswerRun(service, service.assistant, body, caller, trace, found)
    if body.stream:
        return EventStream(run.events, kind="error")
    return JSONResponse(await cancel_on_disconnect(request.receive, run.respond()))


@dataclass(eq=False)
class _AnswerRun:
    """One question in progress."""

    service: Service
    assistant: Assistant
    body: AskBody
    caller: Caller
    trace: Trace
    found: Triage
    """The result of triage"""
    id: str = field(default_factory=lambda: f"ask-{secrets.token_hex(12)}")

    async def respond(self) -> dict[str, Any]:
        """Return the answer alone, without the other events."""
        async with aclosing(self._contents()) as contents:
            return [content async for _, content in contents][-1]

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the assistant's events as server-sent events, as soon as they occur."""
        async with aclosing(self._contents()) as contents:
            async for kind, content in contents:
                yield event(content, kind)

    async def _contents(self) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Yield the kind and content of each event. The last event, the answer, is stored before it is yielded."""
        service, urgent, needs_engine = self.service, self.found.action == "urgent", self.found.action != "decline"
        # Urgent help needs no engine, so it doesn't wait for one.
        waiting = wait_for_turn(service, self.caller, self.trace, needs_engine)
        turn = nullcontext(GeneratedText()) if urgent else waiting
        async with turn as count, aclosing(self._from_thread(count, None if urgent else service.asks)) as events:
            async for each in events:
                content = each.as_dict()
                if each.kind == "answer":
                    content = {"id": self.id} | content
                    count_answer(service.metrics, content)
                    outcome = self.trace.facts["outcome"] = content["outcome"]
                    texts = (self.body.question, content["text"])
                    await service.log_answer(self.caller, self.id, "ask", texts, outcome, facts_of(content))
                yield each.kind, content

    async def _from_thread(self, count: GeneratedText, threads: Executor | None) -> AsyncGenerator[Event, None]:
        """Yield the assistant's events, and store the answer's token counts in `count`.

        The assistant runs in one of `threads`, by default the event loop's. If the client disconnects, the generation
        is cancelled.
        """
        asked, limit = self.body.max_new_tokens, self.service.settings.max_new_tokens
        max_new_tokens = min(asked or self.assistant.settings.max_new_tokens, limit)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        disconnected = threading.Event()

        def work() -> None:
            for each in self.assistant.ask(
                self.body.question,
                style=self.body.style,
                k=self.body.k,
                sources=self.body.sources,
                history=[(past.question, past.answer) for past in self.body.history],
                max_new_tokens=max_new_tokens,
                cancelled=disconnected.is_set,
                triaged=self.found,
                started=self.trace.started,
            ):
                if each.kind == "answer":
                    used = each.as_dict()["tokens"]
                    count.prompt_tokens, count.tokens = used["prompt"], used["completion"]
                loop.call_soon_threadsafe(events.put_nowait, each)

        # The thread continues the request's trace.
        worker = loop.run_in_executor(threads, copy_context().run, work)
        worker.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (each := await events.get()) is not None:
                yield each
            worker.result()
        finally:
            disconnected.set()
            # The place in the engine must stay occupied until the work has really ended.
            await asyncio.wait({worker})
            if not worker.cancelled():
                worker.exception()


@router.post("/v1/search", responses=errors(404, 504), summary="Search the index")
async def search(body: SearchBody, request: Request, caller: Annotated[Caller, Depends(allowed("generate"))]) -> Found:
    """Return passages from the index, without an answer.

    Before the search, the server checks the query for emergencies and unsafe requests, as it does with questions.
    """
    service = route_request(request, caller, body.query)
    if service.assistant is None or service.assistant.index is None:
        raise ApiError(404, "This server has no index to search.", "not_found")
    asked = moderation.ChatQuestion(body.query, [], "query")
    triaged = await moderation.triage_request(request, service, service.assistant, caller, asked)
    trace: Trace = request.scope[SCOPE_KEY]
    if service.settings.log_text:
        trace.facts["question"] = mask(body.query)
    if triaged.action in ("urgent", "decline"):
        outcome = trace.facts["outcome"] = moderation.OUTCOMES[triaged.action]
        service.metrics.outcomes.labels(outcome).inc()
        return Found(query=body.query, outcome=outcome, notice=triaged.text)
    sources = _sources_to_search(request, service.assistant, body.sources)
    async with wait_for_turn(service, caller, trace, needs_engine=False):
        work = partial(service.assistant.search, triaged.question, body.k, sources)
        passages, remarks = await asyncio.get_running_loop().run_in_executor(service.asks, copy_context().run, work)
    notice = triaged.text if triaged.action == "bound" else ""
    remarks = (*triaged.remarks, *remarks)
    return Found(query=body.query, outcome="found", notice=notice, passages=passages, remarks=remarks)


def _sources_to_search(request: Request, assistant: Assistant, named: list[str] | None) -> list[str] | None:
    """Return the sources to search, without restricted ones if the passages are sent to another program's model.

    Raises ApiError 403 if the request names a restricted source, or if all sources are restricted.
    """
    index = assistant.index
    restricted = index.manifest.restricted if index and FOR_OTHER_MODELS in request.scope else []
    if not index or not restricted:
        return named
    free = [name for name in index.manifest.sources if name not in restricted]
    if not free or any(name in restricted for name in named or []):
        others = f" Search only these sources: {', '.join(free)}." if free else ""
        raise ApiError(
            403,
            f"Passages from {', '.join(restricted)} can't be sent to the models of other programs: their licence "
            f"forbids passing them to third parties.{others}",
        )
    return named or free


@router.post("/v1/feedback", responses=errors(404), summary="Send feedback on an answer")
async def feedback(
    body: FeedbackBody, request: Request, caller: Annotated[Caller, Depends(allowed("feedback"))]
) -> Thanks:
    """Store feedback on an answer, and replace any earlier feedback that the same key sent on this answer.

    If the rating is the same as before, fields that the request leaves out keep their earlier values. The server writes
    the feedback to disk before it responds. A key with the `expert` scope can rate anyone's answers, and its feedback
    overrides the feedback of other keys.
    """
    service: Service = request.app.state.service
    service.access.limit_feedback(request, caller)
    # A caller without a key may have the scope, but doesn't count as an expert.
    expert = bool(caller.key) and "expert" in caller.scopes
    answers = await _answers_of(service, body.id, caller, "expert")
    fields = body.model_dump(include={"reasons", "comment", "correction", "decision"}, exclude_unset=True)
    given = Feedback(body.id, caller.key, body.rating, expert=expert, **fields)
    if not await run_in_store_thread(answers.add_feedback, given):
        raise _unknown()
    service.metrics.feedback.labels(body.rating).inc()
    if body.correction or body.decision:
        service.metrics.corrections.labels("expert" if expert else "user").inc()
    return Thanks(id=body.id)


@router.delete("/v1/answers/{id}", responses=errors(404), summary="Delete an answer")
async def delete(id: str, request: Request, caller: Annotated[Caller, Depends(allowed("feedback"))]) -> Deleted:
    """Delete an answer and its feedback.

    The key needs the scope `feedback`, and must be the one with which the question was asked or also have the scope
    `admin`.
    """
    answers = await _answers_of(request.app.state.service, id, caller, "admin")
    if not await run_in_store_thread(answers.delete, id):
        raise _unknown()
    return Deleted(id=id)


async def _answers_of(service: Service, id: str, caller: Caller, scope: Scope) -> Answers:
    """Return the store if it contains the answer, and the caller asked the question or has `scope` or `admin`.

    Raises ApiError 404 otherwise.
    """
    if service.answers is None:
        raise ApiError(404, "This server stores no answers.", "not_found")
    found = await asyncio.to_thread(service.answers.get, id)
    if found is None or (found.who != caller.key and not caller.scopes & {scope, "admin"}):
        raise _unknown()
    return service.answers


def _unknown() -> ApiError:
    return ApiError(404, "This answer doesn't exist, was deleted, or belongs to another key.", "not_found", "id")
