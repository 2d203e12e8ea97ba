"""What chats and completions have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from meditune.serve.schema.body import Body, or_one

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
