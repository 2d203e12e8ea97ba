"""Requests and responses, as OpenAPI describes them.

What all requests have in common: nothing is ignored, and text is text.

What chats and completions have in common.

`/v1/chat/completions`. https://platform.openai.com/docs/api-reference/chat.

`/v1/completions`. https://platform.openai.com/docs/api-reference/completions.

`/v1/embeddings`. https://platform.openai.com/docs/api-reference/embeddings.

`/v1/ask` and what people say of its answers.

Responses that routes share, for the OpenAPI document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from meditune.serve.chat_prompts import Turn

MOST_CHARACTERS = 200_000
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """A request's JSON object. An unknown parameter is an error, unless it asks for nothing.

    A parameter that is null counts as absent, as OpenAI's clients mean it.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Parameters that aren't supported, with the values that change nothing"""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        _refuse_broken_text(given)
        return {
            name: value
            for name, value in given.items()
            if value is not None and not any(value == nothing for nothing in cls.asks_nothing.get(name, ()))
        }


class Told(BaseModel):
    """A response's JSON object."""

    model_config = ConfigDict(protected_namespaces=())


class ErrorDetail(Told):
    """What is wrong, and with which parameter."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(Told):
    """OpenAI's error object."""

    error: ErrorDetail


class Usage(Told):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


Model = Field(min_length=1, max_length=200, description="The served model's name, as GET /v1/models has it.")


def or_one(schema: dict[str, Any]) -> None:
    """Say in a list's JSON schema that one text alone is taken, too."""
    inner = {name: schema.pop(name) for name in ("type", "items", "minItems", "maxItems") if name in schema}
    schema["anyOf"] = [inner.get("items", {"type": "string"}), inner]


def _refuse_broken_text(value: Any) -> None:
    """Halves of UTF-16 pairs, which JSON can spell and no encoding can write."""
    if isinstance(value, str):
        if not value.isascii() and _HALF_PAIR.search(value):
            raise ValueError("text holds half of a surrogate pair, which is no character")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _refuse_broken_text(name)
            _refuse_broken_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_broken_text(inner)


SEEDS = 2**32
Short = Annotated[str, Field(min_length=1, max_length=500)]


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool = False
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False, True)}


class Writing(Body):
    """How to write."""

    temperature: float = Field(0.0, ge=0, le=2, description="0, the default, always takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Short] = Field(
        [], max_length=4, description="Texts that end the answer: one, or up to four.", json_schema_extra=or_one
    )
    stream: bool = Field(False, description="Server-sent events, as they come.")
    stream_options: StreamOptions | None = None
    guided_choice: list[Short] = Field(
        [],
        max_length=64,
        description="If any, the answer is one of these texts (vLLM's parameter).",
        json_schema_extra=or_one,
    )
    user: str = Field("", max_length=200, description="Taken and forgotten.")

    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n": (1,),
        "best_of": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "suffix": ("",),
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "store": (False,),
        "metadata": ({},),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
    }

    @field_validator("stop", "guided_choice", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @property
    def small_seed(self) -> int | None:
        """The seed in the range that every engine takes."""
        return None if self.seed is None else self.seed % SEEDS


class JsonSchema(Body):
    """A schema that the answer is to follow."""

    name: str = Field("answer", max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True
    description: str = Field("", max_length=2000)


class ResponseFormat(Body):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must follow; None for text. Raises ValueError where none was given."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise ValueError("response_format.json_schema is missing")
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


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


MOST_TEXTS = 256


class EmbeddingBody(Body):
    """Texts to embed."""

    model: str = Model
    input: list[Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]] = Field(
        min_length=1, max_length=MOST_TEXTS, description="A text, or up to 256 texts.", json_schema_extra=or_one
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Only the model's own size.")
    user: str = Field("", max_length=200, description="Taken and forgotten.")

    @field_validator("input", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if isinstance(given, list) and given and not isinstance(given[0], str):
            raise ValueError("token ids can't be embedded here, because they are another model's; send texts")
        return [given] if isinstance(given, str) else given


class Vector(Told):
    """One text's vector, as numbers or as base64 of little-endian FP32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Told):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Told):
    """The response."""

    object: Literal["list"] = "list"
    data: list[Vector]
    model: str
    usage: EmbeddingUsage


LONGEST_TURN = 20_000
LONGEST_COMMENT = 20_000


class Past(Body):
    """An earlier question with its answer."""

    question: str = Field(min_length=1, max_length=LONGEST_TURN)
    answer: str = Field(max_length=LONGEST_TURN)


class AskBody(Body):
    """A question about health."""

    # Its length is limited by the server's settings, after triage: a refusal must not stand before urgent help.
    question: str = Field(min_length=1, pattern=r"\S")
    style: Literal["plain", "expert"] = Field("plain", description="For whom the answer is written.")
    k: int | None = Field(None, ge=1, le=50, description="So many passages are looked for.")
    sources: list[Annotated[str, Field(min_length=1, max_length=100)]] | None = Field(
        None, max_length=20, description="Only these sources of the index."
    )
    history: list[Past] = Field([], max_length=20, description="The conversation so far, oldest first.")
    max_new_tokens: int | None = Field(None, ge=1, le=4096)
    stream: bool = Field(False, description="Server-sent events: sources, text, sentence, notice, answer.")


class Asked(Told):
    """The answer; /docs says what its parts are."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    id: str
    question: str


class FeedbackBody(Body):
    """What someone thinks of an answer."""

    id: str = Field(min_length=1, max_length=100, description="The answer's id.")
    rating: Literal["up", "down"]
    reasons: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field([], max_length=10)
    comment: str = Field("", max_length=LONGEST_COMMENT)
    correction: str = Field("", max_length=LONGEST_COMMENT, description="The answer that should have been given.")
    decision: Literal["yes", "no", "maybe"] | None = Field(None, description="What it should have decided.")

    @field_validator("reasons")
    @classmethod
    def _once_each(cls, given: list[str]) -> list[str]:
        return list(dict.fromkeys(given))


class Thanks(Told):
    """That it was kept."""

    id: str
    stored: Literal[True] = True


class Deleted(Told):
    """What was deleted."""

    id: str
    deleted: Literal[True] = True


Facts = dict[str, Any]


_WHY = {
    400: "The request can't be answered as it is: the message names the parameter.",
    401: "No key, or a wrong one.",
    403: "The key lacks the scope, or the page is another site's.",
    404: "There is no such model, answer or page.",
    408: "The body didn't come in time.",
    413: "The body is too large.",
    421: "The server doesn't answer to that name.",
    429: "Rate, quota or capacity is used up; Retry-After says when to come again.",
    500: "The server failed.",
    503: "The server isn't ready.",
    504: "The answer took too long.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses with OpenAI's error object, those that any route may give included."""
    every = sorted({*statuses, 400, 401, 403, 408, 413, 421, 429, 500})
    return {status: {"model": Error, "description": _WHY[status]} for status in every}


def streams(description: str) -> dict[int | str, dict[str, Any]]:
    """A 200 that may also be server-sent events."""
    text = {"type": "string"}
    one = {"type": "object", "properties": {"event": text, "data": text}, "required": ["data"]}
    return {200: {"description": description, "content": {"text/event-stream": {"schema": one}}}}
