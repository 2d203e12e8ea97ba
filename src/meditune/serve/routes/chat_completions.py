"""The route `POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from meditune.engines.engine import GenerationRequest, TokenLogprob
from meditune.serve import moderation, streaming, version_router
from meditune.serve.answer_log import log_answer
from meditune.serve.api_errors import SCOPE_KEY, Trace
from meditune.serve.auth import Caller, allowed
from meditune.serve.moderation import StandardReply
from meditune.serve.schema import Chat, ChatBody, ChatChoice, ChatLogprobs, ChatMessage, Usage, errors, streams
from meditune.serve.service import Service
from meditune.serve.streaming import (
    EventStream,
    GeneratedText,
    cancel_on_disconnect,
    event,
    generate_chunks,
    generate_whole,
    wait_for_turn,
)
from meditune.serve.version_router import conversation_of, route_request

router = APIRouter(tags=["OpenAI"])
BEGINNING = {"role": "assistant", "content": ""}


@router.post(
    "/v1/chat/completions",
    response_model=Chat,
    response_model_exclude_none=False,
    responses={**streams("The answer, or its chunks as server-sent events."), **errors(404, 504)},
    summary="Continue a chat",
)
async def chat(body: ChatBody, request: Request, caller: Annotated[Caller, Depends(allowed("generate"))]) -> Any:
    """Return the model's answer to a chat, in the format that OpenAI's clients expect."""
    first = next((message.turn().text for message in body.messages if message.role == "user"), "")
    conversation = conversation_of(caller, first)
    service = route_request(request, conversation)
    service.must_serve(body.model)
    raw, asked = moderation.is_raw(service, body, caller), moderation.question_in(body)
    instead = None
    if raw or asked is None or service.assistant is None:
        await service.access.pays(request, caller)
    else:
        # Triage comes first: urgent help must come before any other error of a request.
        found = await moderation.triage_request(request, service, service.assistant, caller, asked)
        instead = moderation.reply_instead(found)
    loop = asyncio.get_running_loop()
    job = None if instead else await loop.run_in_executor(service.encoding, _job, service, body)
    ending = moderation.ending(body, raw)
    answer = _Answer(service, body, job, caller, request.scope[SCOPE_KEY], conversation, instead, ending)
    if body.stream:
        return EventStream(answer.events)
    return await cancel_on_disconnect(request, answer.at_once())


def _job(service: Service, body: ChatBody) -> GenerationRequest:
    settings = service.settings
    prompt = service.prompts.chat([message.turn() for message in body.messages])
    wanted = body.max_completion_tokens or body.max_tokens
    room = service.prompts.room(prompt, wanted, settings.new_tokens, "messages")
    return GenerationRequest(
        prompt,
        min(room, settings.most_new_tokens),
        body.temperature,
        body.top_p,
        body.small_seed,
        tuple(body.stop),
        tuple(body.guided_choice),
        body.json_schema,
        max(1, body.top_logprobs) if body.logprobs else 0,
    )


class _Answer:
    """One answer in progress."""

    def __init__(
        self,
        service: Service,
        body: ChatBody,
        job: GenerationRequest | None,
        caller: Caller,
        trace: Trace,
        conversation: str,
        instead: StandardReply | None,
        ending: str,
    ) -> None:
        """Prepare an answer: `instead` is the reply if there is no `job`; `ending` follows the model's text."""
        self.service, self.body, self.job, self.caller, self.trace = service, body, job, caller, trace
        self.conversation, self.instead, self.ending = conversation, instead, ending
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.begun = time.monotonic()

    async def at_once(self) -> Response:
        """Return the whole answer as one response."""
        if self.instead:
            written, text = GeneratedText(), self.instead.text
        else:
            assert self.job is not None, "without a standard reply, the model answers"
            async with wait_for_turn(self.service, self.caller, self.trace) as count:
                written = await generate_whole(self.service, self.job, count, self.trace)
            text = written.text.lstrip() + self.ending
        await self._keep(written, text)
        choice = ChatChoice(
            message=ChatMessage(content=text),
            logprobs=self._logprobs(written.likely),
            finish_reason="length" if written.finish == "length" else "stop",
        )
        response = Chat(
            id=self.id,
            created=self.created,
            model=self.service.served.name,
            system_fingerprint=self.service.served.fingerprint,
            choices=[choice],
            usage=_usage(written),
        )
        return Response(response.model_dump_json(), media_type="application/json")

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as OpenAI's chunks."""
        written = GeneratedText()
        if self.instead:
            yield self._chunk(BEGINNING)
            yield self._chunk({"content": self.instead.text})
            await self._keep(written, self.instead.text)
        else:
            async with wait_for_turn(self.service, self.caller, self.trace) as written:
                async for chunk in self._pieces(written):
                    yield chunk
            if self.ending:
                yield self._chunk({"content": self.ending})
            await self._keep(written, written.text.lstrip() + self.ending)
        yield self._chunk({}, finish="length" if written.finish == "length" else "stop")
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield event(self._head() | {"choices": [], "usage": _usage(written).model_dump()})
        yield event("[DONE]")

    async def _pieces(self, into: GeneratedText) -> AsyncGenerator[bytes, None]:
        """Yield the model's text, without the space at the beginning of its first token."""
        assert self.job is not None, "without a standard reply, the model answers"
        opened = begun = False
        async with aclosing(generate_chunks(self.service, self.job, into, self.trace)) as coming:
            async for piece in coming:
                if not opened:
                    opened = True
                    yield self._chunk(BEGINNING)
                text = piece.text if begun else piece.text.lstrip()
                begun = begun or bool(text)
                if text or piece.likely:
                    yield self._chunk({"content": text}, self._logprobs(list(piece.likely)))

    def _chunk(self, delta: dict[str, Any], logprobs: ChatLogprobs | None = None, finish: str | None = None) -> bytes:
        scores = logprobs.model_dump() if logprobs else None
        choice = {"index": 0, "delta": delta, "logprobs": scores, "finish_reason": finish}
        return event(self._head() | {"choices": [choice]})

    def _head(self) -> dict[str, Any]:
        served = self.service.served
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    def _logprobs(self, likely: list[TokenLogprob]) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        tokenizer = self.service.engine.tokenizer
        return ChatLogprobs(content=[streaming.chat_token(tokenizer, each, self.body.top_logprobs) for each in likely])

    async def _keep(self, written: GeneratedText, text: str) -> None:
        question = self.body.messages[-1].turn().text
        facts: dict[str, Any] = {
            "prompt_tokens": written.prompt_tokens,
            "completion_tokens": written.tokens,
            "finish": written.finish,
        }
        facts["timings"] = {"total": round(time.monotonic() - self.begun, 4)} | {
            name: self.trace.facts[name] for name in ("first_token",) if name in self.trace.facts
        }
        outcome = self.instead.outcome if self.instead else "answered"
        await log_answer(self.service, self.caller, self.id, "chat", question, text, outcome, facts)
        if not self.instead:
            job = partial(_job, body=self.body)
            version_router.chat(self.service, self.conversation, self.caller, self.id, question, job)


def _usage(written: GeneratedText) -> Usage:
    return Usage(
        prompt_tokens=written.prompt_tokens,
        completion_tokens=written.tokens,
        total_tokens=written.prompt_tokens + written.tokens,
    )
