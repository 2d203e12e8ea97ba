"""The routes of OpenAI's API: chats, completions, embeddings and the list of models."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from meditune.assistant.triage import Triage
from meditune.engines.engine import GenerationRequest, TokenLogprob
from meditune.engines.tokenizer import token_bytes
from meditune.errors import ModelError
from meditune.observability import LOGGER
from meditune.serve import moderation, schema
from meditune.serve.api_errors import SCOPE_KEY, ApiError, Trace
from meditune.serve.auth import Caller, allowed
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
from meditune.serve.version_router import route_request

router = APIRouter(tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    response_model=schema.Chat,
    responses={**schema.streams("The answer, or its chunks as server-sent events."), **schema.errors(404, 504)},
    summary="Continue a chat",
)
async def chat(body: schema.ChatBody, request: Request, caller: Annotated[Caller, Depends(allowed("generate"))]) -> Any:
    """Return the model's answer to a chat, in the format that OpenAI's clients expect."""
    first = next((message.turn().text for message in body.messages if message.role == "user"), "")
    service = route_request(request, caller, first)
    raw, question = moderation.is_raw(service, body, caller), moderation.question_in(body)
    reply: Triage | None = None
    if raw or question is None or service.assistant is None:
        await service.access.charge(request, caller)
    else:
        # Triage comes first, because urgent help takes precedence over any error in the request.
        found = await moderation.triage_request(request, service, service.assistant, caller, question)
        reply = found if found.action in moderation.OUTCOMES else None
    requests: list[GenerationRequest] = []
    if reply is None:
        service.require_model(body.model)
        moderation.refuse_many(body.messages, schema.MAX_MESSAGES, "messages")
        requests = [await _encoded(service, _chat_request, body)]
    ending = moderation.ending(body, raw)
    answer = _ChatCompletion(service, body, requests, caller, request.scope[SCOPE_KEY], reply, ending)
    return EventStream(answer.events) if body.stream else await cancel_on_disconnect(request.receive, answer.respond())


@router.post(
    "/v1/completions",
    response_model=schema.Completion,
    responses={**schema.streams("The texts, or their chunks as server-sent events."), **schema.errors(404, 504)},
    summary="Continue or score texts",
)
async def complete(
    body: schema.CompletionBody, request: Request, caller: Annotated[Caller, Depends(allowed("raw", charged=True))]
) -> Any:
    """Return the model's continuation of each prompt. With `echo` and `logprobs`, also score the prompts.

    The server doesn't check the prompts for emergencies or unsafe requests, so this route requires a key with the
    `raw` scope.
    """
    service = route_request(request, caller, str(body.prompts()[0]))
    service.require_model(body.model)
    requests = await _encoded(service, _text_requests, body)
    answer = _TextCompletion(service, body, requests, caller, request.scope[SCOPE_KEY])
    return EventStream(answer.events) if body.stream else await cancel_on_disconnect(request.receive, answer.respond())


async def _encoded(service: Service, make: Callable[[Service, Any], Any], body: schema.GenerationBody) -> Any:
    """Return the requests for the engine. Other threads build them, because tokenizing long texts takes time."""
    return await asyncio.get_running_loop().run_in_executor(service.encoding, make, service, body)


def _chat_request(service: Service, body: schema.ChatBody) -> GenerationRequest:
    prompt = service.prompts.chat([message.turn() for message in body.messages])
    max_tokens, logprobs = body.max_completion_tokens or body.max_tokens, body.top_logprobs if body.logprobs else None
    return _generation_request(service, body, prompt, max_tokens, "messages", logprobs, body.json_schema)


def _text_requests(service: Service, body: schema.CompletionBody) -> list[GenerationRequest]:
    vocabulary = len(service.engine.tokenizer)
    requests = []
    for given in body.prompts():
        prompt = service.prompts.text(given) if isinstance(given, str) else given
        if not prompt:
            raise ApiError(
                400, "prompt is empty, and this model has no start token. Send a text.", "invalid_value", "prompt"
            )
        if max(prompt) >= vocabulary:
            raise ApiError(
                400,
                f"prompt contains a token id that is too large: this model's ids are below {vocabulary:,}.",
                "invalid_value",
                "prompt",
            )
        requests.append(_generation_request(service, body, prompt, body.max_tokens, "prompt", body.logprobs))
    return requests


def _generation_request(
    service: Service,
    body: schema.GenerationBody,
    prompt: Sequence[int],
    max_tokens: int | None,
    param: str,
    logprobs: int | None,
    json_schema: Mapping[str, Any] | None = None,
) -> GenerationRequest:
    """Return the engine's request. Raises ApiError 400 if the prompt leaves too little room for the answer."""
    room = service.prompts.room(prompt, max_tokens, service.settings.new_tokens, param)
    return GenerationRequest(
        prompt,
        min(room, service.settings.max_new_tokens),
        body.temperature,
        body.top_p,
        body.small_seed,
        tuple(body.stop),
        tuple(body.guided_choice),
        json_schema,
        0 if logprobs is None else max(1, logprobs),
    )


@dataclass(eq=False)
class _GenerationResponse:
    """One request in progress, with the parts of the response that chats and completions share."""

    id_prefix: ClassVar[str]
    chunk_object: ClassVar[str]
    response_type: ClassVar[type[schema.Chat] | type[schema.Completion]]
    service: Service
    body: Any
    """The schema.ChatBody or schema.CompletionBody"""
    requests: Sequence[GenerationRequest]
    caller: Caller
    trace: Trace

    def __post_init__(self) -> None:
        self.id, self.created, served = (
            f"{self.id_prefix}-{secrets.token_hex(12)}",
            int(time.time()),
            self.service.served,
        )
        self._fields = {"created": self.created, "model": served.name, "system_fingerprint": served.fingerprint}

    def response(self, choices: Sequence[Any], generated: GeneratedText) -> Response:
        """Return the complete response."""
        content = self.response_type(id=self.id, choices=list(choices), usage=_usage(generated), **self._fields)
        return Response(content.model_dump_json(), media_type="application/json")

    def chunk(self, finish: str | None = None, index: int = 0, logprobs: Any = None, **text: Any) -> bytes:
        """Return a chunk of a stream; `text` is the field that contains the chunk's text."""
        scores = logprobs.model_dump() if logprobs else None
        return self._event([{"index": index, **text, "logprobs": scores, "finish_reason": finish}])

    def last_events(self, generated: GeneratedText) -> Iterator[bytes]:
        """Yield the events at the end of a stream."""
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield self._event([], usage=_usage(generated).model_dump())
        yield event("[DONE]")

    def _event(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        return event({"id": self.id, "object": self.chunk_object} | self._fields | {"choices": choices} | extra)


@dataclass(eq=False)
class _ChatCompletion(_GenerationResponse):
    id_prefix, chunk_object, response_type = "chatcmpl", "chat.completion.chunk", schema.Chat
    reply: Triage | None
    """The standard reply that replaces the model's answer; None if the model answers"""
    ending: str
    """The note to add to the model's answer"""
    written: GeneratedText = field(default_factory=GeneratedText)

    async def respond(self) -> Response:
        """Return the complete answer as one response."""
        texts: list[str] = []
        likely: list[TokenLogprob] = []
        async with aclosing(self._answer()) as parts:
            async for text, some in parts:
                texts.append(text)
                likely += some
        message, finish = schema.ChatMessage(content="".join(texts)), _finish(self.written.finish)
        return self.response(
            [schema.ChatChoice(message=message, logprobs=self._logprobs(likely), finish_reason=finish)], self.written
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as OpenAI's chunks."""
        opened = False
        async with aclosing(self._answer()) as parts:
            async for text, likely in parts:
                if not opened:
                    opened = True
                    yield self.chunk(delta={"role": "assistant", "content": ""})
                if text or likely:
                    yield self.chunk(logprobs=self._logprobs(likely), delta={"content": text})
        yield self.chunk(_finish(self.written.finish), delta={})
        for each in self.last_events(self.written):
            yield each

    async def _answer(self) -> AsyncGenerator[tuple[str, Sequence[TokenLogprob]], None]:
        """Yield the standard reply, or the model's text with its tokens; the note on limits comes last.

        The answer is stored before the generator ends.
        """
        texts: list[str] = []
        timings: dict[str, float] = {}
        if self.reply:
            texts.append(f"{self.reply.text}{moderation.ENDING}")
            yield texts[0], ()
        else:
            async with (
                wait_for_turn(self.service, self.caller, self.trace) as self.written,
                aclosing(generate_chunks(self.service, self.requests[0], self.written, self.trace)) as chunks,
            ):
                async for chunk in chunks:
                    timings.setdefault("first_token", self._elapsed())
                    # The first token usually begins with a space, which people don't expect.
                    texts.append(chunk.text.lstrip() if self.ending and not any(texts) else chunk.text)
                    yield texts[-1], chunk.likely
            if self.ending:
                texts.append(self.ending)
                yield self.ending, ()
        timings["total"] = self._elapsed()
        written = self.written
        facts = {"prompt_tokens": written.prompt_tokens, "completion_tokens": written.tokens, "finish": written.finish}
        outcome = moderation.OUTCOMES[self.reply.action] if self.reply else "answered"
        self.trace.facts["outcome"] = outcome
        asked = [message.turn().text for message in self.body.messages if message.role == "user"]
        logged = (asked[-1], "".join(texts))
        await self.service.log_answer(self.caller, self.id, "chat", logged, outcome, facts | {"timings": timings})

    def _elapsed(self) -> float:
        return round(time.monotonic() - self.trace.started, 4)

    def _logprobs(self, likely: Sequence[TokenLogprob]) -> schema.ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        tokenizer = self.service.engine.tokenizer
        tokens = []
        for each in likely:
            ranked = sorted(each.others.items(), key=lambda entry: -entry[1])[: self.body.top_logprobs]
            top = [schema.TopToken(**_token_fields(tokenizer, token, logprob)) for token, logprob in ranked]
            tokens.append(schema.ChatToken(**_token_fields(tokenizer, each.token, each.logprob), top_logprobs=top))
        return schema.ChatLogprobs(content=tokens)


class _TextCompletion(_GenerationResponse):
    id_prefix, chunk_object, response_type = "cmpl", "text_completion", schema.Completion

    async def respond(self) -> Response:
        """Return all texts as one response."""
        async with wait_for_turn(self.service, self.caller, self.trace) as count:
            with self.service.admission.reserve_free(len(self.requests) - 1) as more:
                works = [partial(self._choice, number, one, count) for number, one in enumerate(self.requests)]
                choices = await _together(works, 1 + more)
        return self.response(choices, count)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the texts as OpenAI's chunks, one prompt after the other."""
        async with wait_for_turn(self.service, self.caller, self.trace) as count:
            for number, request in enumerate(self.requests):
                offset = 0
                async with aclosing(generate_chunks(self.service, request, count, self.trace)) as chunks:
                    async for chunk in chunks:
                        scores = self._logprobs(chunk.likely, offset)
                        offset += len(chunk.text)
                        finish = _finish(chunk.finish) if chunk.finish else None
                        yield self.chunk(finish, number, scores, text=chunk.text)
        for each in self.last_events(count):
            yield each

    async def _choice(self, number: int, request: GenerationRequest, count: GeneratedText) -> schema.CompletionChoice:
        tokenizer = self.service.engine.tokenizer
        written = GeneratedText(finish="length")
        if request.max_new_tokens:
            written = await generate_whole(self.service, request, count, self.trace)
        else:
            count.prompt_tokens += len(request.prompt)
        scores = self._logprobs(written.likely)
        text = written.text
        if self.body.echo:
            prompt = tokenizer.decode(request.prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            text = f"{prompt}{text}"
            if scores is not None:
                # Evaluation harnesses expect a token after the prompt. If the model stops at once, it is the end token.
                ended = bool(request.max_new_tokens) and not written.ids
                echoed = await self._echoed(request, ended)
                # The decoded prompt can be longer or shorter than the joined texts of its tokens.
                offsets = [len(prompt) + place for place in scores.text_offset]
                scores = schema.CompletionLogprobs(
                    tokens=echoed.tokens + scores.tokens,
                    token_logprobs=echoed.token_logprobs + scores.token_logprobs,
                    top_logprobs=echoed.top_logprobs + scores.top_logprobs,
                    text_offset=echoed.text_offset + offsets,
                )
        return schema.CompletionChoice(index=number, text=text, logprobs=scores, finish_reason=_finish(written.finish))

    async def _echoed(self, request: GenerationRequest, has_end_token: bool) -> schema.CompletionLogprobs:
        """Return the scores of the prompt's tokens and, with `has_end_token`, of the end token; None for the first."""
        engine = self.service.engine
        first, rest = list(request.prompt[:1]), [*request.prompt[1:]]
        rest += [engine.tokenizer.eos_token_id] if has_end_token else []
        scored = asyncio.get_running_loop().run_in_executor(self.service.asks, engine.score, first, [rest])
        likely = (await scored)[0] if rest else []
        scores = self._logprobs([TokenLogprob(first[0], 0.0), *likely])
        assert scores is not None, "the request asked for logprobs"
        scores.token_logprobs[0] = scores.top_logprobs[0] = None
        return scores

    def _logprobs(self, likely: Sequence[TokenLogprob], offset: int = 0) -> schema.CompletionLogprobs | None:
        if self.body.logprobs is None:
            return None
        tokenizer = self.service.engine.tokenizer
        texts = [_text_of(tokenizer, each.token) for each in likely]
        return schema.CompletionLogprobs(
            tokens=texts,
            token_logprobs=[_finite(each.logprob) for each in likely],
            top_logprobs=[_named(tokenizer, each) for each in likely],
            text_offset=[*accumulate(map(len, texts[:-1]), initial=offset)] if texts else [],
        )


async def _together(
    calls: Sequence[Callable[[], Awaitable[schema.CompletionChoice]]], concurrency: int
) -> list[schema.CompletionChoice]:
    """Return the results of all calls, of which `concurrency` run at a time. If a call fails, cancel the others."""
    places = asyncio.Semaphore(concurrency)

    async def placed(work: Callable[[], Awaitable[schema.CompletionChoice]]) -> schema.CompletionChoice:
        async with places:
            return await work()

    tasks = [asyncio.ensure_future(placed(work)) for work in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _finish(finish: str) -> Any:
    return "length" if finish == "length" else "stop"


def _usage(generated: GeneratedText) -> schema.Usage:
    prompt, completion = generated.prompt_tokens, generated.tokens
    return schema.Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


MIN_LOGPROB = -9999.0
"""The stand-in for minus infinity, which JSON can't express"""
EMBEDDING_PAUSE_S = 30
"""Seconds after a failed attempt to open the embedding model in which no other attempt is made"""
EMBEDDING_FAILED = "The server can't embed texts now. Its log has the details."


def _text_of(tokenizer: Any, token: int) -> str:
    """Return a token's text. For an incomplete character, return the token's unique name in the vocabulary."""
    try:
        return token_bytes(tokenizer, token).decode()
    except UnicodeDecodeError:
        return str(tokenizer.convert_ids_to_tokens(token))


def _named(tokenizer: Any, likely: TokenLogprob) -> dict[str, float]:
    """Return token text -> log-probability for the most likely tokens and the chosen token."""
    every = dict(likely.others) | {likely.token: likely.logprob}
    found: dict[str, float] = {}
    for token, logprob in sorted(every.items(), key=lambda entry: -entry[1]):
        found.setdefault(_text_of(tokenizer, token), _finite(logprob))
    return found


def _finite(logprob: float) -> float:
    return max(float(logprob), MIN_LOGPROB)


def _token_fields(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    text = _text_of(tokenizer, token)
    return {"token": text, "logprob": _finite(logprob), "bytes": list(token_bytes(tokenizer, token))}


@router.post("/v1/embeddings", response_model=schema.Embeddings, responses=schema.errors(404), summary="Embed texts")
async def embed(
    body: schema.EmbeddingBody, request: Request, caller: Annotated[Caller, Depends(allowed("embed", charged=True))]
) -> Any:
    """Return a unit vector for each text. Texts with similar meanings have similar vectors."""
    service: Service = request.app.state.service
    if service.embeds is None:
        raise ApiError(404, "This server has no embedding model.", "model_not_found", "model")
    service.require_model(body.model, embedding=True)
    # One request at a time may try to download the model, so that downloads can't occupy all threads.
    async with service.embedding_lock:
        if time.monotonic() < service.embedding_after:
            raise ApiError(503, EMBEDDING_FAILED, "failed")
        try:
            model = await asyncio.to_thread(service.embeds)
        except ModelError as error:
            # Those who wait for the lock shouldn't each wait for a download that fails again.
            service.embedding_after = time.monotonic() + EMBEDDING_PAUSE_S
            LOGGER.error("The sentence model can't be opened", extra={"why": str(error)})
            raise ApiError(503, EMBEDDING_FAILED, "failed") from error
    if body.dimensions not in {None, model.size}:
        raise ApiError(400, f"dimensions must be {model.size} for {body.model}.", "invalid_value", "dimensions")
    loop = asyncio.get_running_loop()
    counts = await loop.run_in_executor(service.encoding, _counted, model.tokenizer, body.input)
    async with wait_for_turn(service, caller, request.scope[SCOPE_KEY], needs_engine=False) as count:
        count.prompt_tokens = sum(counts)
        vectors = await loop.run_in_executor(service.asks, model.encode, body.input)
    as_text = body.encoding_format == "base64"
    return schema.Embeddings(
        data=[
            schema.Vector(
                index=n, embedding=base64.b64encode(row.astype("<f4").tobytes()).decode() if as_text else row.tolist()
            )
            for n, row in enumerate(vectors)
        ],
        model=body.model,
        usage=schema.EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts)),
    )


def _counted(tokenizer: Any, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text. Raises ApiError if a text is too long for the model."""
    counts = []
    for number, row in enumerate(tokenizer.encode_batch(texts)):
        most = len(row.ids)
        excess = sum(len(each.ids) - 2 for each in row.overflowing)
        if excess > 0:
            raise ApiError(
                400,
                f"input.{number} is {excess:,} token{'s' if excess != 1 else ''} too long: the model reads at most "
                f"{most} tokens.",
                "context_length_exceeded",
                "input",
            )
        counts.append(most)
    return counts


@router.get("/v1/models", responses=schema.errors(), summary="List the models")
def models(request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> schema.Models:
    """Return the model that generates text and, if there is one, the embedding model."""
    service: Service = request.app.state.service
    return schema.Models(
        data=[schema.ServedModel(id=name, created=service.served.created) for name in service.models()]
    )


@router.get("/v1/models/{name:path}", responses=schema.errors(404), summary="Describe one model")
def model(name: str, request: Request, _: Annotated[Caller, Depends(allowed("generate"))]) -> schema.ServedModel:
    """Return the model with this name."""
    service: Service = request.app.state.service
    if name not in service.models():
        service.require_model(name)
    return schema.ServedModel(id=name, created=service.served.created)
