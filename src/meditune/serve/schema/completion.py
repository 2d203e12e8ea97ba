"""`/v1/completions`. https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from meditune.serve.schema.body import MOST_CHARACTERS, Model, Told, Usage
from meditune.serve.schema.writing import Writing

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1, max_length=100_000)]
MOST_PROMPTS = 64


class CompletionBody(Writing):
    """Texts, or token ids, to go on with."""

    model: str = Model
    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: int = Field(16, ge=0, le=100_000, description="0 only with echo, to score a given text.")
    logprobs: int | None = Field(None, ge=0, le=20, description="So many of the likeliest tokens with each token.")
    echo: bool = Field(False, description="Give the prompt back too, with its log-probabilities if asked for.")

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionBody:
        if self.stream and self.echo:
            raise ValueError("echo isn't possible with stream: true; leave one of them out")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 writes nothing; it is possible with echo: true only")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


class CompletionLogprobs(Told):
    """Of each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Told):
    """What follows one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Completion(Told):
    """The response."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
