"""The common interface of all engines, which batch or queue any number of requests in threads of their own."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from meditune.errors import EngineError, ModelError

Finish = Literal["stop", "length", "cancelled"]
ALTERNATIVES = 5
"""Number of most likely tokens returned for each position of a scored text"""
MAX_SCHEMA_CHARACTERS = 65_536
"""Maximum length of a JSON schema. Compiling a schema of this length takes a fraction of a second; the time then grows
faster than the length."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue."""

    prompt: Sequence[int]
    """Token ids, including the special tokens that begin a text"""
    max_new_tokens: int
    temperature: float = 0.0
    """At 0, the most likely token is always chosen"""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end the answer and aren't part of it"""
    choices: tuple[str, ...] = ()
    """If given, the answer is one of these texts"""
    json_schema: Mapping[str, Any] | None = None
    """If given, the answer is JSON that follows this schema"""
    logprobs: int = 0
    """Number of most likely tokens to return with each token"""


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log-probability, and the most likely tokens at its position."""

    token: int
    logprob: float
    others: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationChunk:
    """The next chunk of an answer, with only complete characters. The last chunk has `finish` or `error`."""

    text: str
    tokens: tuple[int, ...] = ()
    likely: tuple[TokenLogprob, ...] = ()
    """One entry for each token, if log-probabilities were requested"""
    finish: Finish | None = None
    error: Exception | None = None
    """The error that ended the request, if any; this chunk is then the last one"""
    cached: int = 0
    """Number of prompt tokens that came from the cache, if the engine knows it; only one chunk reports it"""

    @property
    def is_last(self) -> bool:
        """Return whether the answer ends with this chunk."""
        return self.finish is not None or self.error is not None


@dataclass(frozen=True)
class EngineLoad:
    """The load of an engine: the numbers of running and waiting requests."""

    running: int
    waiting: int

    @classmethod
    def of(cls, requests: int, concurrency: int) -> EngineLoad:
        """Return the load with this many requests, at most `concurrency` of which run at a time."""
        return cls(min(requests, concurrency), max(0, requests - concurrency))


class RunningGeneration(Protocol):
    """A request that was started."""

    def cancel(self) -> None:
        """End the request now; its last chunk reports the cancellation. Does nothing if the request has ended."""


class Engine(Protocol):
    """A loaded model that generates and scores text."""

    name: str
    """Engine and number format, as in `openvino int8`"""
    tokenizer: Any
    """A tokenizer with the interface of transformers' tokenizers"""
    context_tokens: int
    """Maximum number of tokens in the prompt and answer together"""

    def start(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """Start a request; its chunks are delivered in order from one of the engine's threads.

        If the request has a JSON schema, the call may take a while, so don't call it in an event loop. Raises
        ModelError if the engine doesn't support the request, was closed or has failed.
        """

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """Return the log-probability of every token of each text after the prompt. Raises ModelError if that fails."""

    def load(self) -> EngineLoad:
        """Return the numbers of running and waiting requests."""

    def opened(self) -> None:
        """Wait until the model is open. Raises ModelError if it can't be opened."""

    def failure(self) -> EngineError | None:
        """Return why the engine has permanently stopped accepting requests, or None while it is alive.

        The call may take seconds if the model runs on a server, so don't call this method in an event loop.
        """

    def close(self) -> None:
        """Cancel running requests, and free the model."""


def check_request(request: GenerationRequest, context_tokens: int) -> None:
    """Raise ModelError if a request is invalid, or if its prompt and answer exceed the context."""
    if not request.prompt:
        raise ModelError("The prompt is empty: an engine needs at least one token to continue.")
    if request.max_new_tokens < 1:
        raise ModelError(f"An answer needs at least 1 token; max_new_tokens is {request.max_new_tokens}.")
    if request.choices and request.json_schema is not None:
        raise ModelError("A request can have choices or a JSON schema, but not both.")
    schema = 0 if request.json_schema is None else len(json.dumps(request.json_schema, ensure_ascii=False))
    if schema > MAX_SCHEMA_CHARACTERS:
        raise ModelError(
            f"The JSON schema has {schema:,} characters; an engine takes at most {MAX_SCHEMA_CHARACTERS:,}. Shorten it."
        )
    if not 0 < request.top_p <= 1 or request.temperature < 0:
        raise ModelError(
            f"temperature must be at least 0 and top_p above 0 and at most 1; they are {request.temperature:g} and "
            f"{request.top_p:g}."
        )
    excess = len(request.prompt) + request.max_new_tokens - context_tokens
    if excess > 0:
        raise ModelError(
            f"The prompt has {len(request.prompt):,} tokens and the answer may have {request.max_new_tokens:,}; "
            f"together, that is {excess:,} more than the {context_tokens:,} that this model can read. Shorten one of "
            "them."
        )


def check_scorable(prompt: Sequence[int], texts: Sequence[Sequence[int]], context_tokens: int) -> None:
    """Raise ModelError if the texts can't be scored after the prompt."""
    if not prompt:
        raise ModelError("The prompt is empty: scoring texts needs at least one prompt token.")
    length = len(prompt) + max(map(len, texts), default=0)
    if length > context_tokens:
        raise ModelError(
            f"Prompt and text have {length:,} tokens, {length - context_tokens:,} more than the {context_tokens:,} "
            "that this model can read."
        )


@dataclass(frozen=True)
class GenerationResult:
    """A finished answer."""

    text: str
    tokens: list[int]
    finish: Finish


def generate_all(engine: Engine, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GenerationResult]]:
    """Run all requests at once, and yield each request's index and answer when it ends. An error cancels the others."""
    chunks: queue.SimpleQueue[tuple[int, GenerationChunk]] = queue.SimpleQueue()
    running: dict[int, RunningGeneration] = {}
    begun: list[tuple[list[str], list[int]]] = [([], []) for _ in requests]
    try:
        for number, request in enumerate(requests):
            running[number] = engine.start(request, lambda chunk, number=number: chunks.put((number, chunk)))  # type: ignore[misc]
        while running:
            number, chunk = chunks.get()
            if chunk.error:
                raise chunk.error
            texts, tokens = begun[number]
            texts.append(chunk.text)
            tokens += chunk.tokens
            if chunk.finish:
                del running[number]
                yield number, GenerationResult("".join(texts), tokens, chunk.finish)
    finally:
        for each in running.values():
            each.cancel()
