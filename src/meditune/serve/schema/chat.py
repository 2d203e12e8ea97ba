"""`/v1/chat/completions`. https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from meditune.serve.prompting import Turn
from meditune.serve.schema.body import Body, Model, Told, Usage
from meditune.serve.schema.writing import ResponseFormat, Writing


class TextPart(Body):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    # Lengths are limited by the server's settings, after triage: a refusal must not stand before urgent help.
    content: str | Annotated[list[TextPart], Field(max_length=64)]
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"annotations": ([],), "tool_calls": ([],)}

    def turn(self) -> Turn:
        """Its role, with developers as the system, and all its text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class ChatBody(Writing):
    """A chat to go on with."""

    model: str = Model
    messages: list[Message] = Field(min_length=1, max_length=256)
    max_completion_tokens: int | None = Field(None, ge=1, le=100_000)
    max_tokens: int | None = Field(None, ge=1, le=100_000, description="The older name of max_completion_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens say different things; leave one of them out")
        if self.guided_choice and self.json_schema:
            raise ValueError("guided_choice and response_format can't both be kept; leave one of them out")
        return self

    @field_validator("response_format")
    @classmethod
    def _has_its_schema(cls, given: ResponseFormat | None) -> ResponseFormat | None:
        if given:
            given.schema_asked()
        return given

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What the answer must follow, if anything."""
        return self.response_format.schema_asked() if self.response_format else None


class TopToken(Told):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopToken):
    """... and the likeliest ones in its place."""

    top_logprobs: list[TopToken]


class ChatLogprobs(Told):
    """Of each token of the answer."""

    content: list[ChatToken]


class ChatMessage(Told):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(Told):
    """The one answer."""

    index: int = 0
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Chat(Told):
    """The response."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
