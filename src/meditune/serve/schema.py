"""Requests and responses of the HTTP API, from which FastAPI generates the OpenAPI document.

Chats, completions and embeddings follow OpenAI's API: https://platform.openai.com/docs/api-reference/chat,
https://platform.openai.com/docs/api-reference/completions and
https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from meditune.assistant.events import Answer, Source
from meditune.data.example import Turn
from meditune.prompts import LIMITS_LINE

MAX_CHARACTERS = 200_000
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """A request's JSON object.

    An unsupported parameter is an error, unless its value has no effect. A parameter that is null counts as absent, as
    OpenAI's clients expect.
    """

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Unsupported parameter -> the values that are accepted because they have no effect"""

    @model_validator(mode="before")
    @classmethod
    def _drop_values_without_effect(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        _refuse_broken_text(values)
        return {
            name: value
            for name, value in values.items()
            if value is not None and not any(value == neutral for neutral in cls.asks_nothing.get(name, ()))
        }


class ResponseBody(BaseModel):
    """A response's JSON object."""

    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=True)


class ErrorDetail(ResponseBody):
    """An error's message, its type and code, and the parameter that caused it."""

    message: str
    type: str
    """The kind of error, such as invalid_request_error or rate_limit_error."""
    param: str | None = None
    """The parameter that caused the error."""
    code: str | None = None
    """A fixed name for programs, such as not_found."""


class Error(ResponseBody):
    """An error, in the form of OpenAI's errors."""

    error: ErrorDetail


class Usage(ResponseBody):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int = 0
    """The number of generated tokens."""
    total_tokens: int


Model = Field(min_length=1, max_length=200, description="The name of the served model. GET /v1/models lists it.")


def or_one(schema: dict[str, Any]) -> None:
    """Change a list's JSON schema in place so that it also allows a single item."""
    inner = {name: schema.pop(name) for name in ("type", "items", "minItems", "maxItems") if name in schema}
    schema["anyOf"] = [inner.get("items", {"type": "string"}), inner]


MAX_DEPTH = 64
"""Maximum depth to which lists and objects in a request may be nested"""


def _refuse_broken_text(value: Any) -> None:
    """Raise ValueError if a text contains an unpaired surrogate, or if lists and objects are nested too deeply.

    JSON can express an unpaired surrogate, but UTF-8 can't encode it.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(each, str) and not each.isascii() and _HALF_PAIR.search(each) for each in level):
            raise ValueError("the text contains an unpaired surrogate, which isn't a character")
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in ([*each, *each.values()] if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} levels deep")


SEEDS = 2**32
Short = Annotated[str, Field(min_length=1, max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Ignored = Annotated[str, Field(max_length=200, description="Accepted, but ignored.")]
SourceNames = Annotated[
    list[Name] | None, Field(max_length=20, description="The sources in the index to search; by default, all sources.")
]


MAX_MESSAGES, MAX_EARLIER = 256, 20
"""Maximum numbers of messages in a chat and of earlier questions with their answers"""


def newest(limit: int) -> BeforeValidator:
    """Return a validator that keeps the newest items of a list, at most one more than `limit`.

    A conversation that is too long is refused only after triage. Until then, the rest of it needn't be checked.
    """
    return BeforeValidator(lambda value: value[-limit - 1 :] if isinstance(value, list) else value)


class StreamOptions(Body):
    """Options of a stream. With `include_usage`, the last chunk contains the token counts."""

    include_usage: bool = Field(False, description="Also send the token counts, in the last chunk.")
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False, True)}


class GenerationBody(Body):
    """The generation parameters that chats and completions share."""

    temperature: float = Field(0.0, ge=0, le=2, description="With 0, the most likely token is always chosen.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample only from the most likely tokens that together have this probability."
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="The same seed gives the same sampled answer, except for rounding."
    )
    stop: list[Short] = Field(
        [], max_length=4, description="A text, or up to four texts, at which the answer ends.", json_schema_extra=or_one
    )
    stream: bool = Field(False, description="Send the answer in pieces, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Has an effect only with stream: true.")
    guided_choice: list[Short] = Field(
        [],
        max_length=64,
        description="If given, the answer is one of these texts (a parameter of vLLM).",
        json_schema_extra=or_one,
    )
    user: Ignored = ""

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
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def small_seed(self) -> int | None:
        """Return the seed, mapped into the range that every engine accepts."""
        return None if self.seed is None else self.seed % SEEDS


class JsonSchema(Body):
    """A JSON schema that the answer must follow."""

    name: str = Field("answer", max_length=64, description="Accepted, but not used.")
    schema_: dict[str, Any] = Field(alias="schema", description="The JSON schema that the answer follows.")
    strict: bool = Field(True, description="Accepted, but not used: the answer always follows the schema.")
    description: str = Field("", max_length=2000, description="Accepted, but not used.")


class ResponseFormat(Body):
    """The form of the answer: text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="Required with type json_schema.")

    def schema_asked(self) -> dict[str, Any] | None:
        """Return the JSON schema that the answer must follow; None for text. Raises ValueError without a schema."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise ValueError("response_format.json_schema is missing; type json_schema requires it")
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class TextPart(Body):
    """A part of a message. Text is the only supported type."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    # The server's settings limit the length, after triage: urgent help comes before any refusal.
    content: str | Annotated[list[TextPart], Field(max_length=64)]
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"annotations": ([],), "tool_calls": ([],)}

    def turn(self) -> Turn:
        """Return the message as a turn, with its text parts joined. The role developer becomes system."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn(role="system" if self.role == "developer" else self.role, text=text)


class ChatBody(GenerationBody):
    """A chat for the model to continue."""

    model: str = Model
    messages: Annotated[list[Message], newest(MAX_MESSAGES)] = Field(
        min_length=1, json_schema_extra={"maxItems": MAX_MESSAGES}
    )
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Maximum number of tokens in the answer; by default, 256, and at most the server's limit "
        "(`--max-new-tokens`).",
    )
    max_tokens: int | None = Field(None, ge=1, le=100_000, description="The older name of max_completion_tokens.")
    logprobs: bool = Field(False, description="Return the log-probability of each token of the answer.")
    top_logprobs: int = Field(
        0, ge=0, le=20, description="How many of the most likely tokens to return at each position."
    )
    response_format: ResponseFormat | None = Field(None, description="The form of the answer; by default, text.")

    @model_validator(mode="after")
    def _fits_together(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs requires logprobs: true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens have different values; leave one of them out")
        if self.guided_choice and self.json_schema:
            raise ValueError("guided_choice and response_format can't be combined; leave one of them out")
        return self

    @field_validator("response_format")
    @classmethod
    def _has_its_schema(cls, value: ResponseFormat | None) -> ResponseFormat | None:
        if value:
            value.schema_asked()
        return value

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """Return the JSON schema that the answer must follow; None for text."""
        return self.response_format.schema_asked() if self.response_format else None


class TopToken(ResponseBody):
    """A token with its log-probability."""

    token: str
    logprob: float
    """The natural logarithm of the token's probability."""
    bytes: list[int]
    """The token's UTF-8 bytes."""


class ChatToken(TopToken):
    """A token of the answer with its log-probability, and the most likely tokens at its position."""

    top_logprobs: list[TopToken]


class ChatLogprobs(ResponseBody):
    """The log-probabilities of the answer's tokens."""

    content: list[ChatToken]


class ChatMessage(ResponseBody):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(ResponseBody):
    """The answer; there is always exactly one."""

    index: int = 0
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    """length: the answer reached the maximum number of tokens; stop: the answer ended by itself or at a stop text."""


class Chat(ResponseBody):
    """The response to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix time, in seconds."""
    model: str
    system_fingerprint: str
    """Identifies the version of the model."""
    choices: list[ChatChoice]
    usage: Usage


Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1, max_length=100_000)]
MAX_PROMPTS = 64


class CompletionBody(GenerationBody):
    """One or more prompts for the model to continue, as texts or as token ids."""

    model: str = Model
    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: int = Field(
        16, ge=0, le=100_000, description="Maximum number of tokens; 0 is allowed only with echo, to score the prompt."
    )
    logprobs: int | None = Field(
        None, ge=0, le=20, description="How many of the most likely tokens to return at each position."
    )
    echo: bool = Field(False, description="Also return the prompt, with its log-probabilities if requested.")

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionBody:
        if self.stream and self.echo:
            raise ValueError("echo can't be combined with stream: true; leave one of them out")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens can be 0 only with echo: true, since nothing is generated")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts as a list, even if there is only one."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


class CompletionLogprobs(ResponseBody):
    """The log-probabilities of a text's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """The position of each token's first character in the text."""


class CompletionChoice(ResponseBody):
    """The continuation of one prompt."""

    index: int
    """The prompt's position in the request."""
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    """length: the answer reached the maximum number of tokens; stop: the answer ended by itself or at a stop text."""


class Completion(ResponseBody):
    """The response to a completion request."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    """Unix time, in seconds."""
    model: str
    system_fingerprint: str
    """Identifies the version of the model."""
    choices: list[CompletionChoice]
    usage: Usage


MAX_TEXTS = 256


class EmbeddingBody(Body):
    """Texts to embed."""

    model: str = Model
    input: list[Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]] = Field(
        min_length=1, max_length=MAX_TEXTS, description="One text, or up to 256 texts.", json_schema_extra=or_one
    )
    encoding_format: Literal["float", "base64"] = "float"
    """float: numbers; base64: the bytes of little-endian FP32 numbers, encoded in base64."""
    dimensions: int | None = Field(None, ge=1, description="If given, must be the model's own vector size.")
    user: Ignored = ""

    @field_validator("input", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, list) and value and not isinstance(value[0], str):
            raise ValueError("token ids aren't accepted, because they belong to another model's tokenizer; send texts")
        return [value] if isinstance(value, str) else value


class Vector(ResponseBody):
    """The vector of one text, in the requested `encoding_format`."""

    object: Literal["embedding"] = "embedding"
    index: int
    """The text's position in the request."""
    embedding: list[float] | str


class EmbeddingUsage(ResponseBody):
    """Token counts of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(ResponseBody):
    """The response to an embedding request."""

    object: Literal["list"] = "list"
    data: list[Vector]
    model: str
    usage: EmbeddingUsage


class ServedModel(ResponseBody):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time, in seconds."""
    owned_by: str = "meditune"


class Models(ResponseBody):
    """The list of models."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


MAX_COMMENT_CHARACTERS = 20_000


class Past(Body):
    """An earlier question with its answer."""

    # The server's settings limit the total length, after triage: urgent help comes before any refusal.
    question: str = Field(min_length=1)
    answer: str


class AskBody(Body):
    """A question about health."""

    # The server's settings limit the length, after triage: urgent help comes before any refusal.
    question: str = Field(min_length=1, pattern=r"\S")
    style: Literal["plain", "expert"] = Field(
        "plain", description="The intended readers of the answer: plain (lay readers) or expert (professionals)."
    )
    k: int | None = Field(None, ge=1, le=50, description="The number of passages to retrieve; by default, 5.")
    sources: SourceNames = None
    history: Annotated[list[Past], newest(MAX_EARLIER)] = Field(
        [], description="The conversation so far, oldest first.", json_schema_extra={"maxItems": MAX_EARLIER}
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Maximum number of tokens in the answer; by default, 96, and at most the server's limit "
        "(`--max-new-tokens`).",
    )
    stream: bool = Field(False, description="Send server-sent events (sources, text, sentence, notice, answer).")


@dataclass(frozen=True, kw_only=True)
class Asked(Answer):
    """The answer to a question, with its sentences, sources and notices (docs/how-to/chat-page.md)."""

    id: str
    """The answer's id, for feedback."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema with the descriptions of Answer's fields; pydantic reads docstrings of a class alone."""
        schema = handler.resolve_ref_schema(found := handler(core_schema))
        described = TypeAdapter(Answer).json_schema()["properties"]
        for name, field in schema["properties"].items():
            if "description" in described.get(name, {}):
                field["description"] = described[name]["description"]
        return found


class SearchBody(Body):
    """A search for passages in the index."""

    # The server's settings limit the length, after triage: urgent help comes before any refusal.
    query: str = Field(min_length=1, pattern=r"\S", description="A question, or words to search for.")
    k: int = Field(5, ge=1, le=50, description="The number of passages to return.")
    sources: SourceNames = None


class Found(ResponseBody):
    """The passages that a search found, the best first."""

    query: str
    outcome: Literal["found", "escalated", "declined"]
    """found: the search ran; escalated: the notice tells the reader to get urgent help; declined: the notice refuses
    the request. If the outcome is escalated or declined, there are no passages."""
    notice: str = ""
    """If the query is escalated or declined, the text to show instead of passages; otherwise, for some queries, a note
    on limits."""
    passages: list[Source] = []
    remarks: list[str] = Field([], description="Notes for the reader, such as a warning about the language.")
    limits: str = Field(LIMITS_LINE, description="A note on the limits of all answers. Show this text to the reader.")


class FeedbackBody(Body):
    """A user's feedback on an answer."""

    id: str = Field(min_length=1, max_length=100, description="The answer's id.")
    rating: Literal["up", "down"]
    reasons: list[Name] = Field(
        [],
        max_length=10,
        description="Short reasons. The chat page sends wrong, unsupported, unclear, incomplete or unsafe.",
    )
    comment: str = Field("", max_length=MAX_COMMENT_CHARACTERS, description="The user's own words.")
    correction: str = Field(
        "", max_length=MAX_COMMENT_CHARACTERS, description="The answer that should have been given."
    )
    decision: Literal["yes", "no", "maybe"] | None = Field(None, description="The decision that would have been right.")

    @field_validator("reasons")
    @classmethod
    def _once_each(cls, values: list[str]) -> list[str]:
        return list(dict.fromkeys(values))


class Thanks(ResponseBody):
    """The confirmation that feedback was stored."""

    id: str
    stored: Literal[True] = True


class Deleted(ResponseBody):
    """The confirmation that an answer was deleted."""

    id: str
    deleted: Literal[True] = True


_WHY = {
    400: "The request is invalid. The error's field `param` names the invalid parameter.",
    401: "The key is missing or wrong.",
    403: "The key lacks the required scope, or the request comes from a page of another website.",
    404: "The model, answer or page doesn't exist, or the server lacks what the route needs, such as an index.",
    408: "The request didn't arrive in time.",
    413: "The request body is too large.",
    421: "The server doesn't accept requests for this host name.",
    429: "The rate limit, quota or capacity is exhausted. The header `Retry-After` says when to try again.",
    500: "An error occurred in the server.",
    503: "The server can't answer now: its engine, index, embedding model or store is unavailable, it has too many "
    "connections, or, only for `/readyz`, its queue is full.",
    504: "The answer took longer than the server allows. The header `Retry-After` says when to try again.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses for these statuses and for the statuses that every route can return."""
    every = sorted({*statuses, 400, 401, 403, 408, 413, 421, 429, 500, 503})
    return {status: {"model": Error, "description": _WHY[status]} for status in every}


def streams(description: str) -> dict[int | str, dict[str, Any]]:
    """Return a 200 response that can also be a stream of server-sent events."""
    text = {"type": "string"}
    one = {"type": "object", "properties": {"event": text, "data": text}, "required": ["data"]}
    return {200: {"description": description, "content": {"text/event-stream": {"schema": one}}}}
