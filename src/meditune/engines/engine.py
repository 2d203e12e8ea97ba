"""The one interface of all engines: jobs that are started, pieces of text that come, scores of given texts.

An engine runs in threads of its own and takes any number of jobs at once; it batches or queues them as it can.

What no engine can do, said before a job begins.

Many jobs put to an engine at once, and their whole answers.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from meditune.errors import EngineError, ModelError

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue."""

    prompt: Sequence[int]
    """Token ids with the special tokens that begin a text"""
    max_new_tokens: int
    temperature: float = 0.0
    """0: always the likeliest token"""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end the answer and aren't part of it"""
    choices: tuple[str, ...] = ()
    """If any, the answer is one of these texts"""
    json_schema: Mapping[str, Any] | None = None
    """If any, the answer is JSON of this schema"""
    logprobs: int = 0
    """So many of the likeliest tokens are told with each token"""


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log-probability, and the likeliest ones in its place."""

    token: int
    logprob: float
    others: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationChunk:
    """What came next: whole characters, never half of one. The last piece says why it ended."""

    text: str
    tokens: tuple[int, ...] = ()
    likely: tuple[TokenLogprob, ...] = ()
    """One for each token, where log-probabilities were asked for"""
    finish: Finish | None = None
    error: Exception | None = None
    """What broke the job off; this is its last piece then"""
    cached: int = 0
    """Tokens of the prompt that needed no reading, where the engine knows; told once"""


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is."""

    running: int
    waiting: int


class RunningGeneration(Protocol):
    """A job that was started."""

    def cancel(self) -> None:
        """End it now; its last piece says so. Nothing happens where it has ended."""


class Engine(Protocol):
    """A model that is loaded."""

    name: str
    """Engine and number format, as in `openvino int8`"""
    tokenizer: Any
    """As transformers' tokenizers are called"""
    context_tokens: int
    """The most tokens of prompt and answer together"""

    def start(self, job: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """Begin a job; its pieces are delivered in order from a thread of the engine's.

        Raises ModelError where the engine can't do what the job asks (constraints, log-probabilities), was closed or
        broke down.
        """

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """The log-probability of every token of each text after one prompt.

        Raises ModelError where the engine tells none.
        """

    def load(self) -> EngineLoad:
        """How busy it is."""

    def opened(self) -> None:
        """Wait until the model is open. Raises ModelError where it can't be opened."""

    def failure(self) -> EngineError | None:
        """Return why the engine takes no more work, or None while it is alive.

        A dead or closed engine stays so: open another one. The call returns at once where the model runs on this
        machine, and may take seconds where a server elsewhere is asked, so it isn't for an event loop.
        """

    def close(self) -> None:
        """Cancel what runs, and free the model."""


def check_request(job: GenerationRequest, context_tokens: int) -> None:
    """Raise ModelError where a job has no prompt, or too long a one to answer in the context."""
    if not job.prompt:
        raise ModelError("There is no prompt: an engine needs at least one token to go on from.")
    if job.max_new_tokens < 1:
        raise ModelError(f"An answer needs at least 1 token; {job.max_new_tokens} were asked for.")
    if job.choices and job.json_schema is not None:
        raise ModelError("An answer is one of given texts or JSON, not both.")
    if not 0 < job.top_p <= 1 or job.temperature < 0:
        raise ModelError(
            f"temperature must be at least 0 and top_p above 0 and at most 1; they are {job.temperature:g} and "
            f"{job.top_p:g}."
        )
    excess = len(job.prompt) + job.max_new_tokens - context_tokens
    if excess > 0:
        raise ModelError(
            f"The prompt has {len(job.prompt):,} tokens and the answer may have {job.max_new_tokens:,}; together that "
            f"is {excess:,} more than the {context_tokens:,} that this model takes. Shorten one of them."
        )


def check_scorable(prompt: int, longest: int, context_tokens: int) -> None:
    """Raise ModelError where texts can't be scored after a prompt of so many tokens."""
    if not prompt:
        raise ModelError("Texts are scored after at least one token of prompt; there is none.")
    if prompt + longest > context_tokens:
        raise ModelError(
            f"Prompt and text have {prompt + longest:,} tokens, {prompt + longest - context_tokens:,} more than the "
            f"{context_tokens:,} that this model takes."
        )


@dataclass(frozen=True)
class GenerationResult:
    """An answer that has ended."""

    text: str
    tokens: list[int]
    finish: Finish


def generate_all(engine: Engine, jobs: Sequence[GenerationRequest]) -> Iterator[tuple[int, GenerationResult]]:
    """Each job's number and its answer, as they end. Raises what broke one off; the others are cancelled then."""
    pieces: queue.SimpleQueue[tuple[int, GenerationChunk]] = queue.SimpleQueue()
    begun: dict[int, tuple[list[str], list[int]]] = {}
    running = []
    try:
        for number, job in enumerate(jobs):
            begun[number] = ([], [])
            running.append(engine.start(job, lambda piece, number=number: pieces.put((number, piece))))  # type: ignore[misc]
        while begun:
            number, piece = pieces.get()
            if piece.error:
                raise piece.error
            texts, tokens = begun[number]
            texts.append(piece.text)
            tokens += piece.tokens
            if piece.finish:
                del begun[number]
                yield number, GenerationResult("".join(texts), tokens, piece.finish)
    finally:
        for number in begun:
            if number < len(running):
                running[number].cancel()
