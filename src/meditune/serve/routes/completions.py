"""The routes `POST /v1/completions`, which continues or scores texts, and `POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from meditune.engines.engine import GenerationRequest, TokenLogprob
from meditune.serve import streaming
from meditune.serve.api_errors import SCOPE_KEY, ApiError, Trace
from meditune.serve.auth import Caller, allowed
from meditune.serve.schema import (
    Completion,
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
    EmbeddingBody,
    Embeddings,
    EmbeddingUsage,
    Usage,
    Vector,
    errors,
    streams,
)
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


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses={**streams("The texts, or their chunks as server-sent events."), **errors(404, 504)},
    summary="Continue or score texts",
)
async def complete(
    body: CompletionBody, request: Request, caller: Annotated[Caller, Depends(allowed("raw", paying=True))]
) -> Any:
    """Return the model's continuation of each prompt. With `echo` and `logprobs`, also score the prompt itself.

    This route has no triage, so it requires a key with the scope `raw`.
    """
    service = route_request(request, conversation_of(caller, str(body.prompts()[0])))
    service.must_serve(body.model)
    jobs = await asyncio.get_running_loop().run_in_executor(service.encoding, _jobs, service, body)
    answer = _Completing(service, body, jobs, caller, request.scope[SCOPE_KEY])
    if body.stream:
        return EventStream(answer.events)
    return await cancel_on_disconnect(request, answer.at_once())


def _jobs(service: Service, body: CompletionBody) -> list[GenerationRequest]:
    settings, prompts = service.settings, service.prompts
    vocabulary = len(service.engine.tokenizer)
    made = []
    for given in body.prompts():
        prompt = prompts.text(given) if isinstance(given, str) else given
        if not prompt:
            raise ApiError(
                400, "prompt is empty, and this model has no start token. Send a text.", "invalid_value", "prompt"
            )
        if max(prompt) >= vocabulary:
            raise ApiError(
                400,
                f"prompt has a token id that is too large: this model's ids are below {vocabulary:,}.",
                "invalid_value",
                "prompt",
            )
        room = prompts.room(prompt, body.max_tokens, settings.new_tokens, "prompt")
        made.append(
            GenerationRequest(
                prompt,
                min(room, settings.most_new_tokens),
                body.temperature,
                body.top_p,
                body.small_seed,
                tuple(body.stop),
                tuple(body.guided_choice),
                logprobs=max(1, body.logprobs) if body.logprobs is not None else 0,
            )
        )
    return made


class _Completing:
    """One request in progress."""

    def __init__(
        self, service: Service, body: CompletionBody, jobs: Sequence[GenerationRequest], caller: Caller, trace: Trace
    ) -> None:
        self.service, self.body, self.jobs, self.caller, self.trace = service, body, jobs, caller, trace
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())

    async def at_once(self) -> Response:
        """Return all texts as one response."""
        async with wait_for_turn(self.service, self.caller, self.trace) as count:
            with self.service.admission.spare(len(self.jobs) - 1) as more:
                works = [partial(self._choice, number, job, count) for number, job in enumerate(self.jobs)]
                choices = await _together(works, 1 + more)
        usage = Usage(
            prompt_tokens=count.prompt_tokens,
            completion_tokens=count.tokens,
            total_tokens=count.prompt_tokens + count.tokens,
        )
        response = Completion(
            id=self.id,
            created=self.created,
            model=self.service.served.name,
            system_fingerprint=self.service.served.fingerprint,
            choices=choices,
            usage=usage,
        )
        return Response(response.model_dump_json(), media_type="application/json")

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the texts as OpenAI's chunks, one prompt after the other."""
        async with wait_for_turn(self.service, self.caller, self.trace) as count:
            for number, job in enumerate(self.jobs):
                offset = 0
                async with aclosing(generate_chunks(self.service, job, count, self.trace)) as coming:
                    async for piece in coming:
                        scores = self._logprobs(piece.likely, offset)
                        offset += len(piece.text)
                        finish = None if piece.finish is None else _finish(piece.finish)
                        yield self._chunk(number, piece.text, scores, finish)
        if self.body.stream_options and self.body.stream_options.include_usage:
            usage = {
                "prompt_tokens": count.prompt_tokens,
                "completion_tokens": count.tokens,
                "total_tokens": count.prompt_tokens + count.tokens,
            }
            yield event(self._head() | {"choices": [], "usage": usage})
        yield event("[DONE]")

    async def _choice(self, number: int, job: GenerationRequest, count: GeneratedText) -> CompletionChoice:
        tokenizer = self.service.engine.tokenizer
        written = GeneratedText(finish="length")
        if job.max_new_tokens:
            written = await generate_whole(self.service, job, count, self.trace)
        else:
            count.prompt_tokens += len(job.prompt)
        scores = self._logprobs(written.likely)
        text = written.text
        if self.body.echo:
            prompt = tokenizer.decode(job.prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            text = f"{prompt}{text}"
            if scores is not None:
                # Evaluation harnesses expect one token after the prompt; if the model ended at once, its end token.
                ended = bool(job.max_new_tokens) and not written.ids
                scores = joined(await self._echoed(job, ended), scores, len(prompt))
        return CompletionChoice(index=number, text=text, logprobs=scores, finish_reason=_finish(written.finish))

    async def _echoed(self, job: GenerationRequest, ended: bool) -> CompletionLogprobs:
        """Return the prompt's tokens, and the end token if the model `ended` there; the first token has no score."""
        engine = self.service.engine
        first, rest = list(job.prompt[:1]), [*job.prompt[1:], *([engine.tokenizer.eos_token_id] if ended else [])]
        scored = asyncio.get_running_loop().run_in_executor(self.service.asks, engine.score, first, [rest])
        likely = (await scored)[0] if rest else []
        scores = self._logprobs(likely, len(streaming.text_of(engine.tokenizer, first[0])))
        assert scores is not None, "the request asked for logprobs"
        return CompletionLogprobs(
            tokens=[streaming.text_of(engine.tokenizer, first[0]), *scores.tokens],
            token_logprobs=[None, *scores.token_logprobs],
            top_logprobs=[None, *scores.top_logprobs],
            text_offset=[0, *scores.text_offset],
        )

    def _logprobs(self, likely: Sequence[TokenLogprob], offset: int = 0) -> CompletionLogprobs | None:
        if self.body.logprobs is None:
            return None
        tokenizer = self.service.engine.tokenizer
        texts = [streaming.text_of(tokenizer, each.token) for each in likely]
        offsets = [offset + sum(map(len, texts[:number])) for number in range(len(texts))]
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[streaming.finite_logprob(each.logprob) for each in likely],
            top_logprobs=[streaming.named(tokenizer, each.others, each) for each in likely],
            text_offset=offsets,
        )

    def _chunk(self, number: int, text: str, scores: CompletionLogprobs | None, finish: str | None) -> bytes:
        logprobs = scores.model_dump() if scores else None
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event(self._head() | {"choices": [choice]})

    def _head(self) -> dict[str, Any]:
        served = self.service.served
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }


def joined(first: CompletionLogprobs, then: CompletionLogprobs, offset: int) -> CompletionLogprobs:
    """Return the log-probabilities of two parts of one text, of which the second begins at `offset`."""
    return CompletionLogprobs(
        tokens=first.tokens + then.tokens,
        token_logprobs=first.token_logprobs + then.token_logprobs,
        top_logprobs=first.top_logprobs + then.top_logprobs,
        text_offset=first.text_offset + [offset + place for place in then.text_offset],
    )


async def _together(works: Sequence[Callable[[], Awaitable[CompletionChoice]]], at_once: int) -> list[CompletionChoice]:
    """Return the results of all jobs, `at_once` of which run at the same time. If one fails, cancel the others."""
    places = asyncio.Semaphore(at_once)

    async def placed(work: Callable[[], Awaitable[CompletionChoice]]) -> CompletionChoice:
        async with places:
            return await work()

    tasks = [asyncio.ensure_future(placed(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _finish(finish: str) -> Any:
    return "length" if finish == "length" else "stop"


@router.post("/v1/embeddings", response_model=Embeddings, responses=errors(404), summary="Embed texts")
async def embed(
    body: EmbeddingBody, request: Request, caller: Annotated[Caller, Depends(allowed("embed", paying=True))]
) -> Any:
    """Return a vector of length 1 for each text. Texts with similar meanings have similar vectors."""
    service: Service = request.app.state.service
    if service.embeds is None:
        raise ApiError(404, "This server has no embedding model.", "model_not_found", "model")
    service.must_serve(body.model, embedding=True)
    model = await asyncio.to_thread(service.embeds)
    if body.dimensions not in {None, model.size}:
        raise ApiError(400, f"dimensions must be {model.size} for {body.model}.", "invalid_value", "dimensions")
    loop = asyncio.get_running_loop()
    counts = await loop.run_in_executor(service.encoding, _counted, model.tokenizer, body.input)
    async with wait_for_turn(service, caller, request.scope[SCOPE_KEY], needs_engine=False) as count:
        count.prompt_tokens = sum(counts)
        made = await loop.run_in_executor(service.asks, model.embed, body.input)
    as_text = body.encoding_format == "base64"
    return Embeddings(
        data=[
            Vector(
                index=n, embedding=base64.b64encode(row.astype("<f4").tobytes()).decode() if as_text else row.tolist()
            )
            for n, row in enumerate(made)
        ],
        model=body.model,
        usage=EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts)),
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
